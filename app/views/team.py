"""Team: who may do what here, how many jobs each has waiting or at work, and the record of who did what.

Everyone reads it; an admin changes roles and quotas in the table. The filters of the record are in the link: did=ada, act=launch.
"""

from __future__ import annotations

import pandas as pd
import streamlit as st

from app import frame, signing, state
from app.charts import theme
from starfish_lab import settings
from starfish_lab.store import people
from starfish_lab.store.people import ROLES
from starfish_lab.store.service import LOCAL, MAY

SHOWN = 2000  # newest rows of the record that the filters look through
NOBODY = {"": LOCAL}  # how an owner without a name is shown
COLUMNS = {
    "Person": st.column_config.TextColumn(width=180, required=True, help="The address that the person signs in with."),
    "Role": st.column_config.SelectboxColumn(
        width=96, options=list(ROLES), required=True, help="; ".join(f"{role}: {may}" for role, may in MAY.items()) + "."
    ),
    "Quota": st.column_config.NumberColumn(
        width=90, min_value=0, step=1, help=f"Jobs running and queued at once; 0: as many as wanted; empty: as {settings.QUOTA.name} says."
    ),
    "Running": st.column_config.NumberColumn(width=80, help="Jobs that a worker has now. A sweep counts by its runs."),
    "Queued": st.column_config.NumberColumn(width=80, help="Jobs that wait for a worker. Paused ones do not count."),
}
TIMES = {
    "When": st.column_config.DatetimeColumn(width=170, format="YYYY-MM-DD HH:mm:ss", help="UTC"),
    "Detail": st.column_config.TextColumn(width="large"),
}


def everyone() -> None:
    """The table of people and jobs; for an admin, one to edit."""
    known = state.store().people().rename(columns=str.capitalize).rename(columns={"Who": "Person"})[list(COLUMNS)]
    known["Person"] = known["Person"].replace(NOBODY)
    quota = people.usual_quota()
    limit = f"{theme.count(quota)} jobs running and queued at once" if quota else "as many jobs as wanted"
    st.subheader("People and jobs", anchor=False)
    if not signing.on():
        frame.table(known[["Person", "Quota", "Running", "Queued"]], key="people", column_config=COLUMNS, placeholder="–")
        st.caption(
            f"Nobody signs in here, so everyone is one person, '{LOCAL}', who may do everything and has {limit}. With a section [auth] in "
            "app/.streamlit/secrets.toml people sign in, and each has a role."
        )
        return
    if state.person().may("admin"):
        _edit(known)
    else:
        frame.table(known, key="people", column_config=COLUMNS, placeholder="–")
    st.caption(
        f"Whoever signs in and is not in this table has the role {settings.ROLE()}; without a quota of their own, people have {limit}. "
        f"Who stands in {settings.ADMINS.name} is always an admin. It does not show who is looking just now."
    )


def _edit(known: pd.DataFrame) -> None:
    """Roles and quotas to change, people to add and to take out."""
    key = f"people.{hash(tuple(_roles(known).items()))}"  # edits are of the roles they were made in
    edited = st.data_editor(
        known, key=key, hide_index=True, width="stretch", num_rows="dynamic", column_config=COLUMNS, disabled=["Running", "Queued"], placeholder="–"
    )
    before, after = _roles(known), _roles(edited)
    changed = {who: after.get(who, (None, None)) for who in {**before, **after} if after.get(who) != before.get(who)}
    with frame.actions():
        said = "Change a role or a quota, add a person in the last line, or choose a line by its box and delete it."
        st.caption(f"{len(changed)} changed, not saved yet." if changed else said, width="content")
        if st.button("Save people", type="primary", icon=":material/save:", key="save_people", disabled=not changed):
            store = state.store()
            for who, (role, quota) in changed.items():
                store.set_role(who, role, quota)
            st.rerun()


def _roles(table: pd.DataFrame) -> dict[str, tuple[str, int | None]]:
    """{person: (role, quota)} of the lines that name a person and a role."""
    whole = table[table["Person"].fillna("").str.strip().ne("") & table["Role"].fillna("").ne("")]
    return {who: (role, None if pd.isna(quota) else int(quota)) for who, role, quota in whole[["Person", "Role", "Quota"]].itertuples(index=False)}


def record() -> None:
    """The audit trail, narrowed by person and act."""
    st.subheader("Who did what", anchor=False)
    found = state.store().audit(SHOWN)
    acts = sorted({*found["action"], *state.get("act", ())})  # a link may name an act that nobody did
    with st.container(horizontal=True, vertical_alignment="bottom"):
        chosen = st.multiselect("Act", acts, placeholder="Any", width=360, **state.tie_value("act", ()))
        text = st.text_input("Search", placeholder="person, run, detail", width=280, **state.tie_value("did", ""))
    if chosen:
        found = found[found["action"].isin(chosen)]
    if text:
        words = found["who"] + " " + found["run"].astype("string").fillna("") + " " + found["detail"]
        found = found[words.str.contains(text, case=False, regex=False)]
    shown = pd.DataFrame({
        "When": pd.to_datetime(found["t"], unit="s", utc=True).dt.tz_localize(None), "Who": found["who"], "Act": found["action"], "Run": found["run"],
        "Detail": found["detail"],
    })  # fmt: skip
    frame.table(shown, key="audit", column_config=TIMES, placeholder="–", height=min(560, 38 + 35 * max(len(shown), 2)))
    st.caption(
        f"The newest {theme.count(SHOWN)} acts at most, newest first, refused ones too; times are UTC. It says what was asked on these pages: "
        "commands given at the server, and what workers do with a run, are not in it."
    )


everyone()
record()
