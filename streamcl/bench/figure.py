"""Figures without a display; matplotlib is an extra, and an error says so if it is absent."""

from __future__ import annotations

from pathlib import Path

from streamcl.errors import StreamclError

try:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
except ImportError:
    raise StreamclError("plots need matplotlib: pip install 'streamcl[demo]'") from None

__all__ = ["Figure", "save"]


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG or SVG, by the path's ending."""
    FigureCanvasAgg(figure)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
