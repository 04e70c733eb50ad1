"""STARFISH Lab in the browser: the router, and the frame around every page.

Started by `python -m starfish_lab app`, or by `streamlit run app/main.py` beside a worker.
"""

import gc
import sys
from pathlib import Path

import streamlit as st

ROOT = str(Path(__file__).resolve().parent.parent)
if ROOT not in sys.path:
    sys.path.insert(0, ROOT)

from app import frame, signing, state  # noqa: E402


@st.cache_resource(show_spinner=False)
def _set_apart(path: str) -> None:
    """What a page's modules keep for good, out of the way of the full garbage collection that Streamlit makes after every run."""
    gc.collect()
    gc.freeze()


st.set_page_config(page_title="STARFISH Lab", page_icon=f"{ROOT}/assets/icon.svg", layout="wide")
page = st.navigation(
    {
        "Explore": [
            st.Page("views/explore.py", title="Explore", default=True),
            st.Page("views/spectra.py", title="Spectra"),
            st.Page("views/tokens.py", title="Tokens"),
            st.Page("views/gallery.py", title="Gallery"),
        ],
        "Run": [
            st.Page("views/prune_and_heal.py", title="Prune & heal"),
            st.Page("views/bake_off.py", title="Bake-off"),
            st.Page("views/runs.py", title="Runs"),
        ],
        "Review": [
            st.Page("views/compare.py", title="Compare"),
            st.Page("views/trade_offs.py", title="Trade-offs"),
            st.Page("views/latency.py", title="Latency"),
            st.Page("views/paper.py", title="Paper's rows", url_path="paper"),
            st.Page("views/team.py", title="Team"),
        ],
        "Learn": [st.Page("views/learn.py", title="Learn")],
    },
    position="top",
)
with frame.guard():
    signing.door()
    state.sync(page.url_path)
    notices = frame.begin()
    page.run()
    frame.tell(notices)
    _set_apart(page.url_path)
