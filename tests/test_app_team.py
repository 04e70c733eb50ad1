"""Signing in, and what a page can do for whom. What the store allows is in test_people; here the pages are asked, also with forged state."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import sqlalchemy as sa
import streamlit as st
import synthetic
from conftest import ROOT
from streamlit.proto.WidgetStates_pb2 import WidgetStates
from streamlit.testing.v1 import AppTest
from synthetic import button, labels, said, unharmed

from app import signing
from starfish_lab.errors import LabError
from starfish_lab.store import Store

AUTH = {"redirect_uri": "http://localhost/oauth2callback", "cookie_secret": "x" * 32, "client_id": "lab", "client_secret": "x"}
AUTH |= {"server_metadata_url": "http://localhost/.well-known/openid-configuration"}


@pytest.fixture
def store(lab_home, monkeypatch):
    monkeypatch.setenv("STARFISH_LAB_ADMINS", "boss@x.org")
    store = Store()
    store.set_role("ann@x.org", "runner", 2)
    return store


def opened(page: str, who: str | None, *, auth: dict = AUTH, **query: object) -> AppTest:
    """A page as this person gets it; None: where nobody signed in yet."""
    app = AppTest.from_file(str(ROOT / "app" / "main.py"), default_timeout=30)
    app.secrets["auth"] = dict(auth)
    app.user = {"is_logged_in": who is not None} | ({"email": who, "email_verified": True} if who else {})
    for name, value in query.items():
        app.query_params[name] = str(value)
    app.switch_page(f"views/{page}.py")
    return app.run()


def rows(store: Store) -> list[tuple]:
    return [(row.id, row.status, row.name, row.owner) for row in store.runs(kind=None).itertuples()]


def test_without_the_section_auth_everyone_is_the_local_admin(lab_home):
    app = synthetic.open_page("prune_and_heal")
    button(app, "Prune & heal").click().run()
    store = Store()
    assert unharmed(app) and rows(store) == [(1, "queued", "", "")] and "Sign out" not in labels(app)
    assert list(store.audit()[["who", "action", "run"]].iloc[0]) == ["local", "launch", 1]
    team = synthetic.open_page("team")
    assert unharmed(team) and "everyone is one person, 'local'" in said(team) and "Save people" not in labels(team)
    assert list(team.dataframe[1].value["Act"]) == ["launch"]


def test_nobody_sees_a_page_before_signing_in(store):
    synthetic.done(store, name="secret plan")
    for page in ("explore", "runs", "team"):
        app = opened(page, None)
        assert unharmed(app) and "Sign in" in labels(app) and "asks who you are" in said(app)
        assert not app.dataframe and "secret plan" not in said(app) and not app.sidebar.selectbox
    many = opened("runs", None, auth={**{k: AUTH[k] for k in ("redirect_uri", "cookie_secret")}, "google": AUTH, "okta": AUTH})
    assert {"Sign in with google", "Sign in with okta"} <= set(labels(many))


def test_a_missing_authlib_is_said_in_a_sentence(store, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda *_: None)
    app = opened("runs", None)
    assert unharmed(app) and "pip install 'streamlit[auth]'" in said(app) and "Sign in" not in labels(app)


@pytest.mark.parametrize(
    ("user", "problem"),
    [
        ({"is_logged_in": True}, "without an email address"),
        ({"is_logged_in": True, "email": ""}, "without an email address"),
        ({"is_logged_in": True, "email": "boss@x.org", "email_verified": False}, "was not verified"),
        ({"is_logged_in": False, "email": "boss@x.org"}, "asks who you are"),
        ({"email": "boss@x.org"}, "asks who you are"),
    ],
)
def test_who_cannot_be_told_is_nobody(store, user, problem):
    app = opened("runs", None)
    app.user = user
    app.run()
    assert unharmed(app) and problem in said(app) and not app.dataframe


def test_a_broken_or_missing_secrets_file_makes_nobody_an_admin(store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fresh = type(st.secrets)()
    monkeypatch.setattr(st, "secrets", fresh)
    with pytest.raises(LabError, match="STARFISH_LAB_ADMINS names admins, but nobody can sign in"):
        signing.who()
    monkeypatch.delenv("STARFISH_LAB_ADMINS")
    assert signing.who() is None
    path = tmp_path / "secrets.toml"
    path.write_text("[auth\n")
    monkeypatch.setattr(st, "get_option", lambda name: [str(path)] if name == "secrets.files" else None)
    with pytest.raises(LabError, match="cannot be read, so it is not known who may sign in"):
        signing.who()


def test_a_role_none_sees_nothing(store, monkeypatch):
    monkeypatch.setenv("STARFISH_LAB_ROLE", "none")
    synthetic.done(store, name="secret plan")
    app = opened("runs", "eve@x.org")
    assert unharmed(app) and "who may not use this lab" in said(app) and not app.dataframe


def test_the_sidebar_says_who_is_signed_in(store):
    app = opened("explore", "Ann@x.org")
    assert unharmed(app) and "Sign out" in labels(app)
    assert any("ann@x.org" in text.value for text in app.sidebar.text) and "runner" in said(app)


def pressed(app: AppTest, *widgets: str) -> AppTest:
    """The page after a browser claims that these buttons were pressed, whether it was shown them or not."""
    states = WidgetStates()
    for widget in widgets:
        state = states.widgets.add()
        state.id, state.trigger_value = widget, True
    return app._run(states)


def forged(app: AppTest, label: str, store) -> AppTest:
    """The page after a greyed-out button was pressed: twice, once as it is, once where the page takes the person for an admin."""
    found, before = button(app, label), rows(store)
    assert found.disabled and "role runner" in found.help, label
    assert unharmed(pressed(app, found.proto.id)) and rows(store) == before, label
    _, url, person = app.session_state["person"]
    app.session_state["person"] = (1e12, url, replace(person, role="admin"))  # what the page shows may be wrong, what the store allows is not
    return pressed(app, found.proto.id)


def test_a_viewer_launches_nothing_from_any_page(store):
    queued = store.submit(synthetic.recipe(name="of ann"), owner="ann@x.org")
    synthetic.done(store, name="done", owner="ann@x.org")
    before = rows(store)
    app = opened("prune_and_heal", "eve@x.org", new=1)
    app = forged(app, "Prune & heal", store)
    assert unharmed(app) and rows(store) == before and "with the role viewer" in said(app)
    app = opened("prune_and_heal", "eve@x.org", run=queued)
    app = forged(app, "Cancel", store)
    assert unharmed(app) and rows(store) == before and "'cancel' was refused" in said(app)
    for label in ("Cancel", "Delete for good"):
        app = opened("runs", "eve@x.org", runs=f"{queued},2")
        app = forged(app, label, store)
        assert unharmed(app) and rows(store) == before and "was refused" in said(app)
    assert set(store.audit()["action"]) == {"launch refused", "cancel refused", "delete refused"}


def test_a_profile_that_a_viewer_would_queue_is_said_instead(store):
    app = opened("explore", "eve@x.org", model="vit_tiny_patch16_224", weights="random")
    app = forged(app, "Profile this network", store)
    assert unharmed(app) and rows(store) == [] and "with the role viewer" in said(app)


def test_forged_widgets_change_nothing(store):
    run = store.submit(synthetic.recipe(name="of ann"), owner="ann@x.org")
    before, people = rows(store), store.people().to_dict("list")
    for page, query in (("team", {}), ("runs", {"runs": run}), ("prune_and_heal", {"new": 1}), ("prune_and_heal", {"run": run}), ("latency", {})):
        shown_to_an_admin = [found.proto.id for found in opened(page, "boss@x.org", **query).button]
        assert shown_to_an_admin
        for widget in shown_to_an_admin:  # one at a time: the first refusal ends a page
            app = pressed(opened(page, "eve@x.org", **query), widget)
            assert unharmed(app) and rows(store) == before and store.people().to_dict("list") == people, (page, widget)
    app = pressed(opened("prune_and_heal", None, new=1), opened("prune_and_heal", "boss@x.org", new=1).button(key="launch").proto.id)
    assert unharmed(app) and rows(store) == before and "Sign in" in labels(app)


def test_forged_links_and_session_values_change_nothing(store):
    names = {name: "boss@x.org" for name in ("owner", "email", "person", "by", "role")}
    app = opened("prune_and_heal", "eve@x.org", new=1, **names)
    app.session_state["launched"] = {}
    app = forged(app, "Prune & heal", store)
    assert unharmed(app) and rows(store) == [] and "as eve@x.org with the role viewer" in said(app)
    app.session_state["person"] = (1e12, store.url, store.person("boss@x.org"))  # somebody else
    app = pressed(app, button(app, "Prune & heal").proto.id)
    assert unharmed(app) and rows(store) == [] and button(app, "Prune & heal").disabled
    app = opened("team", "eve@x.org", act="nonsense", did="<b>", **names)
    assert unharmed(app) and "Save people" not in labels(app) and "viewer" in said(app)


def test_one_browser_after_the_other_is_each_its_own_person(store):
    """The open store is shared by all sessions; who it acts for is not."""
    ann, eve = opened("prune_and_heal", "ann@x.org", new=1), opened("prune_and_heal", "eve@x.org", new=1)
    button(ann, "Prune & heal").click().run()
    eve = forged(eve, "Prune & heal", store)
    assert [row[3] for row in rows(store)] == ["ann@x.org"] and "with the role viewer" in said(eve)
    ann = opened("prune_and_heal", "ann@x.org", new=1, sparsity=0.5)
    store.set_role("ann@x.org", "viewer")  # taken away while the page is open
    button(ann, "Prune & heal").click().run()
    assert len(rows(store)) == 1


def test_a_role_costs_one_query_a_rerun_at_most(store, monkeypatch):
    monkeypatch.setattr("app.state.KNOWN_SECONDS", 60.0)  # so that a slow machine makes no second look within one rerun
    asked = []

    def note(_connection, _cursor, text, *_) -> None:
        asked.append(" people" in text)

    sa.event.listen(sa.Engine, "before_cursor_execute", note)
    try:
        signed_in = opened("runs", "ann@x.org")
        assert unharmed(signed_in) and sum(asked) == 1 < len(asked)
        signed_in.run()
        assert sum(asked) == 1
        asked.clear()
        monkeypatch.delenv("STARFISH_LAB_ADMINS")
        assert unharmed(synthetic.open_page("runs")) and asked and not any(asked)  # the local person is asked of no table
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", note)


def test_the_quota_is_said_on_the_page(store):
    for sparsity in (0.5, 0.6):
        button(opened("prune_and_heal", "ann@x.org", new=1, sparsity=sparsity), "Prune & heal").click().run()
    app = opened("prune_and_heal", "ann@x.org", new=1, sparsity=0.7)
    button(app, "Prune & heal").click().run()
    assert unharmed(app) and len(rows(store)) == 2 and "You have 2 of your 2 jobs running or queued, and this would add 1" in said(app)
    team = opened("team", "ann@x.org")
    table = team.dataframe[0].value.set_index("Person")
    assert (table.loc["ann@x.org", "Queued"], table.loc["ann@x.org", "Quota"], table.loc["boss@x.org", "Role"]) == (2, 2, "admin")


def test_the_record_is_filtered_by_a_link(store):
    store.acting_as("ann@x.org").submit(synthetic.recipe(name="first"))
    store.acting_as("boss@x.org").request_cancel(1)
    app = opened("team", "eve@x.org", act="cancel")
    assert unharmed(app) and list(app.dataframe[1].value["Who"]) == ["boss@x.org"]
    app = opened("team", "eve@x.org", did="ANN@")
    assert list(app.dataframe[1].value["Act"]) == ["launch"]


def edited(app: AppTest, widget: str, **edits: object) -> AppTest:
    """The page after a browser sends edits of a table, and once more with the button Save pressed."""
    states = WidgetStates()
    table = states.widgets.add()
    table.id, table.string_value = widget, json.dumps({"edited_rows": {}, "added_rows": [], "deleted_rows": []} | edits)
    app = app._run(states)
    button = states.widgets.add()
    button.id, button.trigger_value = next(found.proto.id for found in opened("team", "boss@x.org").button if found.key == "save_people"), True
    return app._run(states)


def test_an_admin_edits_people_and_nobody_else_does(store):
    app = opened("team", "boss@x.org")
    assert unharmed(app) and button(app, "Save people").disabled
    widget = app.data_editor[0].proto.id
    assert list(app.data_editor[0].value["Person"]) == ["ann@x.org", "boss@x.org"]
    edits = dict(edited_rows={"0": {"Role": "viewer", "Quota": 7}}, added_rows=[{"Person": " Eve@X.org", "Role": "admin"}])
    for who in ("eve@x.org", "ann@x.org"):
        forged = edited(opened("team", who), widget, **edits)
        assert unharmed(forged) and store.person("ann@x.org").role == "runner" and store.person("eve@x.org").role == "viewer"
    app = edited(app, widget, **edits)
    assert unharmed(app) and (store.person("ann@x.org").role, store.person("ann@x.org").quota) == ("viewer", 7)
    assert store.person("eve@x.org").role == "admin" and set(store.audit()["action"]) == {"set role"}
    app = opened("team", "boss@x.org")
    assert list(app.data_editor[0].value["Person"]) == ["ann@x.org", "boss@x.org", "eve@x.org"]
    edited(app, app.data_editor[0].proto.id, deleted_rows=[2])
    assert store.person("eve@x.org").role == "viewer" and "eve@x.org" not in set(store.people()["who"])
