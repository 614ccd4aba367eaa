"""Results as pictures, tables and text.

    view = nl.views.attention(model, "The cat sat on the mat")
    view                       # in a notebook: maps and a table that outlive the kernel
    view.head(2, 1)            # one head, large
    view.frame                 # every weight, tidy
    view.to_svg("maps.svg")    # also to_png, to_pdf, to_html, to_csv
    nl.views.hooks(model)      # what can be read and changed, to search

The views draw plain arrays and labels and know no model; only ``attention`` and ``hooks`` ask one
for its patterns and its table.
"""

from __future__ import annotations

from neox_lab.views.attention_view import AttentionView
from neox_lab.views.attribution_graph import AttributionGraphView, Flow, Mark
from neox_lab.views.bars import BarsView
from neox_lab.views.base import View
from neox_lab.views.confusion import ConfusionView
from neox_lab.views.curves import CurvesView, Line
from neox_lab.views.examples import ExamplesView, TextExample
from neox_lab.views.explorer import ExplorerView
from neox_lab.views.heatmap import HeatmapView
from neox_lab.views.lens import LensView
from neox_lab.views.lens_pair import LensPairView
from neox_lab.views.model_views import attention, hooks
from neox_lab.views.network import HeadPatterns, Link, NetworkView
from neox_lab.views.notebooks import clean_notebook, notebook_faults
from neox_lab.views.pairs import PairView
from neox_lab.views.predictions import PredictionsView
from neox_lab.views.report_page import report, write_report
from neox_lab.views.scatter import ScatterView
from neox_lab.views.slider import SliderView
from neox_lab.views.strips import Piece, StripView
from neox_lab.views.text import TextView
from neox_lab.views.tokens import label
from neox_lab.views.tree import TreeView

__all__ = [
    "AttentionView",
    "AttributionGraphView",
    "BarsView",
    "ConfusionView",
    "CurvesView",
    "ExamplesView",
    "ExplorerView",
    "Flow",
    "HeadPatterns",
    "HeatmapView",
    "LensPairView",
    "LensView",
    "Line",
    "Link",
    "Mark",
    "NetworkView",
    "PairView",
    "Piece",
    "PredictionsView",
    "ScatterView",
    "SliderView",
    "StripView",
    "TextExample",
    "TextView",
    "TreeView",
    "View",
    "attention",
    "clean_notebook",
    "hooks",
    "label",
    "notebook_faults",
    "report",
    "write_report",
]
