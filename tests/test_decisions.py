"""Decisions and notes: on a run's page, under Compare and Runs, kept with who, when and why."""

from __future__ import annotations

import pytest
import synthetic
from synthetic import button, labels, open_page, said, unharmed

from starfish_lab.store import Store


@pytest.fixture
def store(lab_home):
    return Store()


def _texts(app) -> str:
    return "\n".join(element.value for element in app.text)


def _decide(app, verdict: str, why: str, who: str):
    app.segmented_control(key="verdict").set_value(verdict)
    app.text_area(key="verdict_why").set_value(why)
    app.text_input(key="verdict_who").set_value(who)
    return button(app, "Keep the decision").click().run()


@pytest.mark.parametrize(("page", "query"), [("prune_and_heal", "run"), ("runs", "runs"), ("compare", "runs")])
def test_a_decision_is_kept_with_who_and_why_from_every_page_that_shows_a_run(store, page, query):
    run = synthetic.done(store)
    app = open_page(page, **{query: run}, **({"show": "decisions"} if page == "compare" else {}))
    assert unharmed(app) and f"Nobody has decided on run {run}" in said(app)
    app = _decide(app, "rejected", "loses 2 pp", "Ada")
    assert unharmed(app) and "loses 2 pp (Ada, 2" in _texts(app)
    (row,) = store.decisions([run]).to_dict("records")
    assert (row["decision"], row["why"], row["who"]) == ("rejected", "loses 2 pp", "Ada")


def test_the_newest_decision_counts_and_earlier_ones_stay(store):
    run = synthetic.done(store)
    store.decide(run, "needs work", "too slow", "Ada")
    app = _decide(open_page("prune_and_heal", run=run), "accepted", "sliced now", "Bob")
    assert list(store.decisions([run])["decision"]) == ["accepted", "needs work"]
    assert _texts(app).index("sliced now") < _texts(app).index("too slow") and "1 earlier decision" in [found.label for found in app.expander]


def test_several_runs_are_decided_on_at_once(store):
    ids = [synthetic.done(store), synthetic.done(store, sparsity=0.5)]
    _decide(open_page("runs", runs="1,2"), "accepted", "both", "Ada")
    assert sorted(store.decisions(ids)["run"]) == ids


def test_what_is_missing_is_said_and_nothing_is_kept(store):
    run = synthetic.done(store)
    app = open_page("prune_and_heal", run=run)
    button(app, "Keep the decision").click().run()
    assert unharmed(app) and "give a decision, a reason and your name too" in said(app) and store.decisions([run]).empty
    button(app, "Keep the note").click().run()
    assert "give a note" in said(app) and store.remarks([run]).empty


def test_a_name_is_typed_once_and_serves_for_notes_too(store):
    run = synthetic.done(store)
    app = _decide(open_page("prune_and_heal", run=run), "accepted", "fine", "Ada")
    app.text_area(key="remark_text").set_value("Look at **block 3**.")
    app = button(app, "Keep the note").click().run()
    (row,) = store.remarks([run]).to_dict("records")
    assert (row["text"], row["who"]) == ("Look at **block 3**.", "Ada")
    assert "Look at **block 3**.\nAda, 2" in _texts(app)  # as it was typed, not as Markdown


def test_what_was_typed_is_shown_as_text_and_never_as_markup(store):
    run = synthetic.done(store)
    store.decide(run, "accepted", "<script>alert(1)</script>", "<b>Ada</b>")
    app = open_page("prune_and_heal", run=run)
    assert unharmed(app) and "<script>alert(1)</script> (<b>Ada</b>" in _texts(app)
    assert not any("<script>" in str(element.value) for element in app.markdown)


def test_runs_lists_and_filters_by_decision(store):
    first, second, third = (synthetic.done(store, sparsity=sparsity) for sparsity in (0.5, 0.75, 0.9))
    store.decide(first, "accepted", "a", "Ada")
    store.decide(second, "accepted", "b", "Ada")
    store.decide(second, "rejected", "c", "Ada")
    table = open_page("runs").dataframe[0].value.set_index("Run")
    assert table["Decision"].fillna("").to_dict() == {first: "Accepted", second: "Rejected", third: ""}
    assert list(open_page("runs", decided="accepted").dataframe[0].value["Run"]) == [first]
    assert list(open_page("runs", decided="undecided").dataframe[0].value["Run"]) == [third]
    app = open_page("runs", decided="perhaps")
    assert unharmed(app) and "decided = 'perhaps'" in said(app)


def test_who_may_only_look_has_no_controls(store, monkeypatch):
    from app import state
    from starfish_lab.store.people import Person

    run = synthetic.done(store)
    monkeypatch.setattr(state, "person", lambda: Person("eve@example.org", "viewer"))
    app = open_page("prune_and_heal", run=run)
    assert unharmed(app) and "Keep the decision" not in labels(app) and "Keep the note" not in labels(app)
