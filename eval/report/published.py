"""What others report of the methods: unconditional CIFAR-10, FID at one and two steps. Never measured here.

Each line was read in the table of the source that is named.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """FID of 50,000 images at one and two steps, None where the source has none; the paper, and where it was read."""

    one: float
    two: float | None
    source: str
    variant: str = ""

    def __str__(self) -> str:
        values = " / ".join("–" if value is None else f"{value:.2f}" for value in (self.one, self.two))
        return f"{values} ({self.variant})" if self.variant else values


_SCM = "Lu & Song 2024, arXiv:2410.11081, table 1"
PUBLISHED: dict[str, tuple[Published, ...]] = {
    "cd": (Published(3.55, 2.93, "Song et al. 2023, arXiv:2303.01469", "LPIPS"),),
    "ct": (Published(8.70, 5.83, "Song et al. 2023, arXiv:2303.01469", "LPIPS"),),
    "ict": (Published(2.83, 2.46, "Song & Dhariwal 2023, arXiv:2310.14189"),),
    "ect": (Published(3.60, 2.11, "Geng et al. 2024, arXiv:2406.14548, 51 million images"),),
    "tcm": (Published(2.46, 2.05, "Lee et al. 2024, arXiv:2410.14895, the authors’ repository"),),
    "scm": (Published(3.66, 2.52, _SCM, "sCD"), Published(2.85, 2.06, _SCM, "sCT")),
    "pd": (Published(8.34, 5.58, "Salimans & Ho 2022, arXiv:2202.00512, as Lu & Song 2024 have it"),),
    "dmd": (Published(3.77, None, "Yin et al. 2023, arXiv:2311.18828, as Lu & Song 2024 have it"),),
    "cmt": (Published(2.74, 1.97, "Hu et al. 2025, arXiv:2509.24526, then ECT; the authors’ repository"),),
}
"""By a method's `name`; one that nobody reports on this data is not in it."""
