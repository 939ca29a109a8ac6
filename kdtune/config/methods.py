"""Built-in methods: class, defaults, names, paper, and colours of each; loads no torch."""

from collections.abc import Mapping
from dataclasses import dataclass

SettingValues = Mapping[str, bool | int | float | str]


@dataclass(frozen=True)
class MethodInfo:
    """All that kdtune knows of a built-in method besides its loss and its search space.

    Attributes:
        class_path: module under `kdtune.methods` and class, as ``at:AttentionTransfer``.
        defaults: settings whose defaults differ from those of `kdtune.config.train.TrainConfig`.
        compares: what of student and teacher it compares.
        loss: its own term, as docs/methods.md shows it.
        colour: on a light page, as ``#rrggbb``.
        marker: in figures, as matplotlib names it.
    """

    class_path: str
    display_name: str
    defaults: SettingValues
    paper: str
    compares: str
    loss: str
    colour: str
    dark_colour: str
    marker: str


BUILTIN_METHODS = {
    "at": MethodInfo(
        class_path="at:AttentionTransfer", display_name="AT",
        defaults={"temperature": 4.0, "alpha": 0.0, "beta": 1e3},
        paper="Zagoruyko & Komodakis 2017, their code", compares="attention maps of every stage",
        loss="Σ mean (Q_s − Q_t)², Q = mean of squares over channels, of length 1",
        colour="#0072b2", dark_colour="#2f9bdb", marker="o",
    ),
    "at_paper": MethodInfo(
        class_path="at:PaperAttentionTransfer", display_name="AT (paper)",
        defaults={"temperature": 4.0, "alpha": 0.0, "beta": 0.1},
        paper="Zagoruyko & Komodakis 2017, equation 2", compares="attention maps of every stage",
        loss="½·Σ ‖Q_s − Q_t‖, mean over images",
        colour="#3d4f9f", dark_colour="#8fa2f0", marker="h",
    ),
    "fitnets": MethodInfo(
        class_path="fitnets:FitNets", display_name="FitNets",
        defaults={"temperature": 3.0, "alpha": 0.1, "beta": 1e-3},
        paper="Romero et al. 2015", compares="one stage, through a regressor R",
        loss="mean (R(F_s) − F_t)²",
        colour="#d55e00", dark_colour="#e8752a", marker="s",
    ),
    "vid": MethodInfo(
        class_path="vid:VariationalInformationDistillation", display_name="VID",
        defaults={"temperature": 4.0, "alpha": 0.0, "beta": 1.0},
        paper="Ahn et al. 2019", compares="one stage, with a learned variance σ²",
        loss="mean ½·((μ(F_s) − F_t)² / σ² + log σ²)",
        colour="#8c5a00", dark_colour="#c9953a", marker="P",
    ),
    "sp": MethodInfo(
        class_path="sp:SimilarityPreserving", display_name="SP",
        defaults={"temperature": 4.0, "alpha": 0.0, "beta": 3e3},
        paper="Tung & Mori 2019", compares="similarities between images, by one stage",
        loss="‖G_s − G_t‖² / B², G = F·Fᵀ of B images, rows of length 1",
        colour="#a0388f", dark_colour="#d675c5", marker="v",
    ),
    "rkd": MethodInfo(
        class_path="rkd:RelationalKnowledgeDistillation", display_name="RKD",
        defaults={"temperature": 4.0, "alpha": 0.0, "beta": 25.0},
        paper="Park et al. 2019", compares="distances and angles between images, by embeddings",
        loss="Huber loss of distances + 2·Huber loss of angles",
        colour="#7457c8", dark_colour="#a792f2", marker="<",
    ),
    "pkt": MethodInfo(
        class_path="pkt:ProbabilisticKnowledgeTransfer", display_name="PKT",
        defaults={"temperature": 4.0, "alpha": 0.0, "beta": 3e4},
        paper="Passalis & Tefas 2018", compares="which images are neighbours, by embeddings",
        loss="mean p_t·log(p_t / p_s), p of an image's neighbours",
        colour="#00838f", dark_colour="#33b5c1", marker=">",
    ),
    "dkd": MethodInfo(
        class_path="dkd:DecoupledKnowledgeDistillation", display_name="DKD",
        defaults={"temperature": 4.0, "alpha": 1.0, "beta": 8.0},
        paper="Zhao et al. 2022", compares="logits, the label's class apart from the others",
        loss="alpha·TCKD + beta·NCKD, where KD = TCKD + (1 − p_t(label))·NCKD",
        colour="#b3261e", dark_colour="#f0766c", marker="*",
    ),
    "dist": MethodInfo(
        class_path="dist:DIST", display_name="DIST",
        defaults={"temperature": 4.0, "alpha": 0.0, "beta": 2.0},
        paper="Huang et al. 2022", compares="logits, up to scale and shift",
        loss="T²·(1 − ρ over classes + 1 − ρ over images), ρ Pearson's correlation of p_s and p_t",
        colour="#6f7d00", dark_colour="#b5c23c", marker="X",
    ),
    "kd": MethodInfo(
        class_path="kd:KnowledgeDistillation", display_name="KD",
        defaults={"alpha": 1.0, "beta": 0.0},
        paper="Hinton et al. 2015", compares="logits",
        loss="none; KD = T²·KL(p_t ‖ p_s)",
        colour="#009e73", dark_colour="#009e73", marker="^",
    ),
    "student": MethodInfo(
        class_path="student:StudentOnly", display_name="student",
        defaults={"alpha": 0.0, "beta": 0.0},
        paper="", compares="nothing: labels alone",
        loss="",
        colour="#767676", dark_colour="#999999", marker="D",
    ),
}  # fmt: skip
"""The built-in methods by name; `kdtune.methods` has their classes."""
