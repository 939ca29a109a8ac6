"""Plans of what fits into the cache, compared with sums by hand."""

from hypothesis import given
from hypothesis import strategies as st

from kdtune.tuning.trials.cache_plan import PLANNED_CACHE_SHARE, plan_cache

TARGETS = {
    "kd": {"logits": 10},
    "at": {"logits": 10, "map": 50},
    "fitnets": {"logits": 10, "hint": 500},
}


def plan(limit, plain=True, augmented=False, targets=TARGETS, epochs=10):
    limit /= PLANNED_CACHE_SHARE
    return plan_cache(limit, 100, 120, targets, plain, int(augmented), epochs)


def test_without_augmentation_one_view_of_all():
    planned, lines = plan(1000)
    assert planned.methods == ("kd", "at", "fitnets") and planned.augment_views == 0
    assert planned.num_bytes == 120 + 10 + 50 + 500  # logits are shared
    assert lines == []


def test_what_does_not_fit_runs_live_and_the_line_says_why():
    large = {m: {k: v * 10**9 for k, v in t.items()} for m, t in TARGETS.items()}
    planned, lines = plan(500e9, targets=large)
    assert planned.methods == ("kd", "at")
    assert lines == [
        "the cache takes 60.0 GB: 0.0 MB of images, 60.0 GB of the teacher's targets",
        "fitnets: the teacher runs live: with logits 10.0 GB + hint 500.0 GB of a view the cache "
        "takes 560.0 GB, and there is room for 500.0 GB; cache_gb 589.474 is enough",
    ]


def test_augmented_views_take_what_is_left():
    planned, lines = plan(
        120 + 3 * 660 + 1, plain=False, augmented=True
    )  # a view: 100 + 10 + 50 + 500
    assert planned.methods == ("kd", "at", "fitnets") and planned.augment_views == 3
    assert planned.num_bytes == 120 + 3 * 660
    assert lines == [
        "augmented views: 10 epochs cycle through 3; cache_gb 0.001 holds one for each"
    ]


def test_what_a_large_data_set_takes_is_said():
    gb = 10**9
    limit, targets = 1000 * gb / PLANNED_CACHE_SHARE, {"kd": {"logits": 5 * gb}}
    planned, lines = plan_cache(limit, 193 * gb, 200 * gb, targets, True, True, 50)
    # 200 and the targets of plain images; then there is room for 4 x 198.
    assert planned.num_bytes == (200 + 5 + 4 * 198) * gb and planned.augment_views == 4
    assert lines[0] == (
        "the cache takes 997.0 GB: 200.0 GB of images, 4 x 193.0 GB of augmented views, 25.0 GB "
        "of the teacher's targets"
    )


def test_no_more_views_than_epochs():
    planned, lines = plan(1e6, plain=False, augmented=True, epochs=4)
    assert planned.augment_views == 4 and lines == ["augmented views: 4 epochs cycle through 4"]


def test_a_method_without_room_for_one_view_runs_live_on_the_views_of_the_others():
    planned, lines = plan(120 + 5 * 160, plain=False, augmented=True)
    # fitnets: 120 + 660 fits into 920, so one view of all is taken rather than five of the rest
    assert planned.methods == ("kd", "at", "fitnets") and planned.augment_views == 1
    planned, lines = plan(120 + 4 * 160, plain=False, augmented=True)
    assert planned.methods == ("kd", "at") and planned.augment_views == 4
    assert lines[0].startswith("fitnets: the teacher runs live: with ")


def test_where_no_view_fits_all_run_live():
    planned, lines = plan(150, plain=False, augmented=True)
    assert planned.methods == () and planned.augment_views == 0 and planned.num_bytes == 120
    assert all("the teacher runs live" in line for line in lines[:-1])
    assert lines[-1].startswith("augmented anew in every epoch; cache_gb 0.001 holds a")


def test_the_advised_cache_is_enough_and_hardly_more():
    large = {m: {k: v * 10**9 for k, v in t.items()} for m, t in TARGETS.items()}
    for enough, count in ((589.474, 3), (589.473, 2)):
        planned, _ = plan_cache(enough * 1e9, 100, 120, large, True, False, 10)
        assert len(planned.methods) == count


def test_each_augmentation_has_views_of_its_own():
    """With two of them a view of 660 bytes is needed twice."""
    planned, _ = plan(120 + 4 * 660 + 1, plain=False, augmented=2)
    assert planned.augment_views == 2 and planned.num_bytes == 120 + 4 * 660


def test_plain_and_augmented_runs_in_one_sweep():
    planned, lines = plan(120 + 560 + 2 * 660, plain=True, augmented=True)
    assert planned.augment_views == 2 and planned.num_bytes == 120 + 560 + 2 * 660


@given(
    limit=st.integers(120, 5000),
    plain=st.booleans(),
    epochs=st.integers(1, 20),
    sizes=st.dictionaries(
        st.sampled_from(["a", "b", "c"]),
        st.dictionaries(st.sampled_from(["x", "y", "z"]), st.integers(1, 900)),
    ),
)
def test_no_more_is_kept_than_fits(limit, plain, epochs, sizes):
    planned, lines = plan(limit, plain=plain, augmented=True, targets=sizes, epochs=epochs)
    assert planned.num_bytes <= limit and 0 <= planned.augment_views <= epochs
    assert len(planned.methods) + sum("runs live" in line for line in lines) == len(sizes)
