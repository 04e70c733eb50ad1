"""The frame of the app and the page Explore, through AppTest, figures asserted trace by trace."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from urllib.parse import parse_qs

import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from starfish_lab import settings, whatif
from starfish_lab.recipe import ModelChoice, PruningChoice, Recipe, StartChoice, TokensChoice
from starfish_lab.report import Report
from starfish_lab.store import Store
from starfish_lab.whatif import Profile

MAIN = str(settings.ROOT / "app" / "main.py")
DEIT = "deit_base_patch16_224.fb_in1k"


def open_app(link: str = "", page: str = "") -> AppTest:
    """The app as a browser shows it that follows a link."""
    at = AppTest.from_file(MAIN, default_timeout=60)
    for name, values in parse_qs(link, keep_blank_values=True).items():
        at.query_params[name] = values[0]
    if page:
        at.run()
        at.switch_page(f"views/{page}.py")
    at.run()
    assert not at.exception, at.exception
    return at


def figure(at: AppTest, number: int = 0) -> dict:
    return json.loads(at.get("plotly_chart")[number].proto.spec)


def link(at: AppTest) -> dict[str, str]:
    return {name: values[0] if isinstance(values, list) else values for name, values in at.query_params.items()}


def bundled() -> Profile:
    return Profile.from_json((settings.ASSETS / "starter" / "profile.json").read_text())


def figures(at: AppTest) -> str:
    return next(element.proto.body for element in at.get("html") if 'class="figures"' in element.proto.body)


def lost(fig: dict) -> dict[str, float]:
    """{layer: height of its amber bar}."""
    bars = [trace for trace in fig["data"] if trace["type"] == "bar" and trace["name"] != "stays"]
    return {layer: height for bar in bars for layer, height in zip(bar["customdata"], values(bar["y"]))}


def values(array: object) -> list[float]:
    """Plotly sends arrays as lists or as base64 with a type."""
    if isinstance(array, dict):
        import base64

        import numpy as np

        return np.frombuffer(base64.b64decode(array["bdata"]), dtype=array["dtype"]).tolist()
    return array


def test_first_page_needs_no_worker_and_shows_what_90_percent_would_take():
    at = open_app()
    assert not at.error and not at.warning and link(at) == {}
    expected = whatif.predict(bundled(), PruningChoice())
    assert lost(figure(at)) == dict(zip(expected.layers["layer"], expected.layers["removed"]))
    assert figure(at)["layout"]["title"]["text"] == "Every layer loses 90.0 %"
    spectrum = figure(at, 1)
    assert spectrum["layout"]["xaxis"]["type"] == "log" and "block 0" in spectrum["layout"]["title"]["text"]
    said = " ".join(caption.value for caption in at.caption)
    assert "**90.0 %** of prunable weights" in said and "of all parameters" in said and "mask only: no speed-up expected" in said
    assert "46.4 M" in figures(at) and "2.71 M" in figures(at) and "estimate" in figures(at)
    assert any(badge in text.value for text in at.markdown for badge in ("Worker starting", "No worker"))


@pytest.mark.parametrize(
    "query, choice",
    [
        ("sparsity=0.5&budget=global", PruningChoice(sparsity=0.5, budget="global")),
        ("sparsity=0.75&budget=mp_edge", PruningChoice(sparsity=0.75, budget="mp_edge")),
        ("pattern=n_m&keep=6&of=12", PruningChoice(pattern="n_m", keep=6, group=12)),
        ("pattern=structured&sparsity=0.5&units=mlp", PruningChoice(pattern="structured", sparsity=0.5, units=("mlp",))),
        ("score=random&sparsity=0.3", PruningChoice(score="random", sparsity=0.3)),
    ],
)
def test_a_link_opens_its_view_and_stays_as_it_is(query, choice):
    at = open_app(query)
    assert not at.error and not at.warning
    expected = whatif.predict(bundled(), choice)
    assert lost(figure(at)) == dict(zip(expected.layers["layer"], expected.layers["removed"]))
    assert link(at) == {name: values[0] for name, values in parse_qs(query).items()}
    said = " ".join(caption.value for caption in at.caption)
    assert ("really smaller" in said) == (choice.pattern == "structured")


def test_a_pattern_with_equal_shares_takes_no_budget_along():
    at = open_app("budget=mp_edge")
    at.segmented_control(key="choice.pattern").set_value("n_m").run()
    assert link(at) == {"pattern": "n_m"} and not at.warning and lost(figure(at))


def test_a_pattern_that_fits_no_layer_is_refused_in_words():
    at = open_app("pattern=n_m&keep=1&of=7")
    assert len(at.warning) == 1 and "7" in at.warning[0].value
    assert not at.get("plotly_chart")


def test_nonsense_in_every_value_of_a_link_becomes_the_default_and_is_said_once():
    from app.state import SHORT, Choice

    # any text may be a path or a column
    free = {"path", "images_path", "images_csv", "label_column", "calibration_path", "calibration_csv", "start_path"}
    names = [SHORT.get(f.name, f.name) for f in dataclasses.fields(Choice) if f.name not in free]
    at = open_app("&".join(f"{name}=%3Cno%20sense%3E" for name in names) + "&show=pie&run=x&layer=none")
    assert link(at) == {"layer": "none", "run": "x"}, "run belongs to other pages, which say so themselves"
    told = " ".join(warning.value for warning in at.warning)
    assert all(f"{name} = " in told for name in [*names, "show"])
    assert lost(figure(at)) == lost(figure(open_app()))
    at.run()
    assert not at.warning


@pytest.mark.parametrize(
    "query", ["sparsity=nan", "sparsity=1e999", "sparsity=1", "keep=0", "steps=-1", "cal=99999999999", "units=", "model=..%2F..%2Fetc"]
)
def test_values_out_of_range_do_not_break_the_page(query):
    at = open_app(query)
    assert len(at.warning) == 1 and not at.error
    assert at.get("plotly_chart")


def test_the_choice_is_written_to_the_address_bar_and_survives_a_change_of_page():
    at = open_app()
    at.slider(key="choice.sparsity").set_value(0.6).run()
    at.selectbox(key="choice.budget").set_value("global").run()
    assert link(at) == {"sparsity": "0.6", "budget": "global"}
    at.switch_page("views/spectra.py").run()
    assert not at.exception and link(at) == {"sparsity": "0.6", "budget": "global"}
    at.switch_page("views/explore.py").run()
    assert at.slider(key="choice.sparsity").value == 0.6
    reopened = open_app("sparsity=0.6&budget=global")
    assert lost(figure(reopened)) == lost(figure(at))
    at.selectbox(key="choice.budget").set_value("uniform").run()
    assert link(at) == {"sparsity": "0.6"}, "defaults stay out"


def test_what_bars_show_and_the_selected_layer_stand_in_the_link():
    at = open_app("show=share&layer=blocks.2.mlp.fc1")
    fig = figure(at)
    assert list(lost(fig).values()) == pytest.approx([90.0] * 24, abs=0.01)
    assert "fc1, block 2" in figure(at, 1)["layout"]["title"]["text"]
    order = list(whatif.predict(bundled(), PruningChoice()).layers["layer"])
    (outline,) = [shape for shape in fig["layout"]["shapes"] if shape["type"] == "rect"]
    assert (outline["x0"] + outline["x1"]) / 2 == order.index("blocks.2.mlp.fc1")


def test_prune_and_heal_submits_the_run_at_once_and_shows_it():
    at = open_app("sparsity=0.75")
    next(button for button in at.button if button.label == "Prune & heal").click().run()
    assert not at.exception and not at.error
    run = Store().run(1)
    assert run.kind == "experiment" and run.status == "queued"
    assert run.recipe.pruning == PruningChoice(sparsity=0.75) and run.recipe.healing.steps == 200
    assert link(at) == {"sparsity": "0.75", "run": "1"}
    at.switch_page("views/explore.py").run()
    next(button for button in at.button if button.label == "Prune & heal").click().run()
    assert len(Store().runs()) == 1, "the same recipe that still waits is not queued twice"


def test_a_network_without_profile_invites_and_then_appears():
    at = open_app(f"model={DEIT}")
    assert not at.get("plotly_chart")
    next(button for button in at.button if button.label == "Profile this network").click().run()
    job = Store().run(1)
    assert job.kind == "profile" and job.recipe.model == ModelChoice(name=DEIT, weights="pretrained")
    assert not any(button.label == "Profile this network" for button in at.button)
    assert "No worker is running" in " ".join(caption.value for caption in at.caption)
    store = Store()
    assert store.claim("w", "cpu").id == 1
    store.fail(1, "No weights here. Choose 'file'.")
    at.run()
    assert [error.value for error in at.error] == ["No weights here. Choose 'file'."]
    assert any(button.label == "Profile this network" for button in at.button)
    store.save_profile(whatif.profile_key(job.recipe.model), bundled())
    at.run()
    assert not at.error and len(at.get("plotly_chart")) == 4

    anew = bundled()
    anew.facts["macs_g"] = 12.3
    store.save_profile(whatif.profile_key(job.recipe.model), anew)
    store.finish(store.submit(job.recipe, "profile"), Report())
    at.run()
    assert "12.3 G" in figures(at)  # the one in memory gives way


def test_random_weights_are_marked_on_the_page_and_bundled_ones_are_not():
    def marked(at: AppTest) -> bool:
        return any("random weights" in element.value for element in at.markdown)

    assert marked(open_app("model=vit_tiny_patch16_224&weights=random"))
    assert not marked(open_app())


def test_weights_from_a_file_without_a_path_or_a_missing_one_are_an_error_in_words():
    assert "need its path" in open_app(f"model={DEIT}&weights=file").error[0].value
    assert "cannot be read" in open_app(f"model={DEIT}&weights=file&file=/no/such.pt").error[0].value


def test_figures_show_what_the_latest_run_of_this_recipe_measured():
    from app import state

    store = Store()
    report = Report()
    for stage, right, parameters in (("dense", 532, 2.712), ("pruned", 60, 0.323), ("healed", 520, 0.323)):
        report.add(
            "accuracy",
            [{"top1": right / 540, "top5": 1.0, "low": right / 540 - 0.02, "high": right / 540 + 0.01, "correct": right, "images": 540}],
            stage=stage,
        )
        cost = {"sparsity_prunable": 0.9, "sparsity_all": 0.88, "macs_g": 0.0464, "macs_g_effective": 0.0464 if stage == "dense" else 0.00577}
        report.add("totals", [{"parameters_m": 2.712, "nonzero_parameters_m": parameters, **cost}], stage=stage)
    report.add("latency", [{"stage": "dense", "batch": 1, "latency_ms_p50": 2.5, "device_name": "Test CPU"}])
    recipe = state.recipe(state.Choice())
    run = store.submit(recipe)
    store.claim("w", "cpu")
    store.finish(run, report)
    body = figures(open_app())
    assert "98.5 %" in body and "± 2.0" in body, "the wider side of the interval"
    assert "96.3 %" in body and "−2.2 pp" in body and "−87.4 pp" in body
    assert "2.50 ms" in body and "Test CPU" in body and "estimate" not in body
    other = figures(open_app("sparsity=0.5"))
    assert "98.5 %" in other and "96.3 %" not in other, "dense accuracy is known from any run of this network on these images"


def test_the_recipe_of_a_link_is_that_of_the_choice():
    from app import state

    adopted = Recipe(pruning=PruningChoice(pattern="n_m", keep=1, group=4))
    assert state.recipe(state.Choice(steps=0)) == Recipe()
    assert state.recipe(state.Choice(pattern="n_m", keep=1, steps=0)).pruning == adopted.pruning


def test_the_sidebar_says_what_the_workers_do():
    store = Store()
    store.announce("a", "cpu", "Test CPU")
    said = [element.value for element in open_app().markdown]
    assert any("cpu: idle" in text for text in said) and not any("No worker" in text for text in said)
    run = store.submit(Recipe())
    store.claim("a", "cpu")
    store.heartbeat("a", run)
    assert any(f"cpu: busy with run {run}" in element.value for element in open_app().markdown)


def test_every_layer_is_computed_only_when_opened():
    at = open_app()
    assert not at.dataframe
    st.cache_data.clear()
    at.session_state["details"] = True
    at.run()
    assert not at.exception and len(at.dataframe[0].value) == 24


def test_the_web_process_never_loads_torch(tmp_path):
    script = (
        "import sys; from streamlit.testing.v1 import AppTest\n"
        f"at = AppTest.from_file({MAIN!r}, default_timeout=60).run()\n"
        "for page in ('spectra', 'explore'): at.switch_page(f'views/{page}.py').run()\n"
        "assert not at.exception and at.get('plotly_chart'); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, cwd=settings.ROOT)
    assert done.stdout.strip().endswith("False"), done.stderr[-2000:]


def test_own_images_with_a_table_become_the_recipe(tmp_path):
    at = open_app("images=csv&folder=/a/val.zip&table=/a/val.csv&labels=wnid&cal_folder=/a/train.zip&cal_table=/a/train.csv&eval=1000")
    labels = {field.label for field in at.sidebar.text_input} | {field.label for field in at.sidebar.number_input}
    assert {"Folder or zip", "CSV of file and label", "Label column", "Calibration folder or zip", "Calibration CSV", "Evaluation images"} <= labels
    next(button for button in at.button if button.label == "Prune & heal").click().run()
    images = Store().run(1).recipe.images
    assert (images.source, images.path, images.csv, images.label_column) == ("csv", "/a/val.zip", "/a/val.csv", "wnid")
    assert (images.calibration_path, images.calibration_csv, images.evaluation) == ("/a/train.zip", "/a/train.csv", 1000)


# -- what comes before pruning ------------------------------------------------------------------------------------------------


def words(at: AppTest) -> str:
    return " ".join(element.value for kind in ("caption", "markdown", "warning", "error") for element in getattr(at, kind))


@pytest.mark.parametrize(
    "query, recipe",
    [
        ("start=ser&start_at=0.5&pattern=kept", Recipe(start=StartChoice(method="ser", sparsity=0.5), pruning=PruningChoice(pattern="kept"))),
        ("merge=3&sparsity=0.5", Recipe(tokens=TokensChoice(r=(3,)), pruning=PruningChoice(sparsity=0.5))),
        ("pattern=n_m&order=deal&score=cast", Recipe(pruning=PruningChoice(pattern="n_m", permutation="deal", score="cast"))),
        ("score=sparsegpt&sparsity=0.6", Recipe(pruning=PruningChoice(score="sparsegpt", sparsity=0.6))),
        ("pattern=structured&score=variance&sparsity=0.5", Recipe(pruning=PruningChoice(pattern="structured", score="variance", sparsity=0.5))),
        (
            "budget=mp_edge&signal=hill_alpha&beta=1.5&sparsity=0.5",
            Recipe(pruning=PruningChoice(budget="mp_edge", sparsity=0.5, options={"signal": "hill_alpha", "beta": 1.5})),
        ),
        (
            "pattern=n_m&score=cast&alpha=0.5&prior=mean_energy&restore=0&sequential=1&order=search&importance=energy&gather=0",
            Recipe(
                pruning=PruningChoice(
                    pattern="n_m",
                    score="cast",
                    permutation="search",
                    score_options={"alpha": 0.5, "prior": "mean_energy", "free_restoration": False, "sequential": True},
                    permutation_options={"importance": "energy", "gather": False},
                )
            ),
        ),
        (
            "score=sparsegpt&update=0&damping=0.1&sparsity=0.5",
            Recipe(pruning=PruningChoice(score="sparsegpt", sparsity=0.5, score_options={"update": False, "damping": 0.1})),
        ),
    ],
)
def test_a_link_says_what_comes_before_pruning(query, recipe):
    at = open_app(query)
    assert not at.error and not at.warning
    assert link(at) == {name: values[0] for name, values in parse_qs(query).items()}
    expected = whatif.predict(bundled(), recipe.pruning, start=recipe.start, tokens=recipe.tokens)
    assert lost(figure(at)) == dict(zip(expected.layers["layer"], expected.layers["removed"]))
    next(button for button in at.button if button.label == "Prune & heal").click().run()
    made = Store().run(1).recipe
    assert (made.start, made.tokens, made.pruning) == (recipe.start, recipe.tokens, recipe.pruning)


def test_options_of_a_solver_go_with_it_and_not_with_a_score():
    at = open_app("pattern=n_m&score=cast&alpha=0.5&sequential=1&order=deal&gather=0")
    assert "More · deal order, no gather, α = 0.5, sequential" in buttons_of_popovers(at)
    at.number_input(key="choice.alpha").set_value(0.25).run()
    at.toggle(key="choice.free_restoration").set_value(False).run()
    assert link(at) == {"pattern": "n_m", "score": "cast", "alpha": "0.25", "restore": "0", "sequential": "1", "order": "deal", "gather": "0"}
    assert "More · deal order, no gather, α = 0.25 and 2 others" in buttons_of_popovers(at)
    at.selectbox(key="choice.score").set_value("sparsegpt").run()
    assert link(at) == {"pattern": "n_m", "score": "sparsegpt", "sequential": "1", "order": "deal", "gather": "0"}
    assert at.number_input(key="choice.damping").value == 0.01 and "choice.alpha" not in [widget.key for widget in at.number_input]
    at.selectbox(key="choice.score").set_value("magnitude").run()
    at.selectbox(key="choice.permutation").set_value("none").run()
    assert link(at) == {"pattern": "n_m"} and not [toggle for toggle in at.toggle if toggle.key.startswith("choice.")]


def test_the_choices_defaults_are_those_of_solvers_and_permutations():
    from app import choice
    from starfish_lab.pruning import PERMUTATIONS, SOLVERS, permutation, rules

    shown = {name: known for score in SOLVERS.names() for name, known in rules.score_options(score).items() if name in choice.SOLVER_OPTIONS}
    assert shown == {name: getattr(choice.DEFAULTS, name) for name in choice.SOLVER_OPTIONS}
    for name in PERMUTATIONS.names():
        assert {option: getattr(choice.DEFAULTS, option) for option in choice.ORDER_OPTIONS}.items() <= rules.permutation_options(name).items()
    assert permutation.IMPORTANCES == choice.IMPORTANCES


def test_every_published_row_keeps_its_options_through_the_choice():
    from app import choice, merging
    from starfish_lab import presets

    for key in presets.presets()["key"]:
        known = presets.recipe_of(key)
        assert merging.merged(known, choice.recipe(choice.Choice(**choice.values(known)))).pruning == known.pruning, key


def test_layers_that_no_pattern_looks_at_are_named_with_their_reason():
    profile = bundled()
    rows = whatif.outside(profile, PruningChoice()).set_index("layer")
    assert list(rows.index) == ["patch_embed.proj", "head"] and rows["note"].str.startswith("outside the blocks").all()
    rows = whatif.outside(profile, PruningChoice(include=("head",), exclude=("*.qkv",))).set_index("layer")
    assert "head" not in rows.index and rows.loc["blocks.0.attn.qkv", "note"] == "excluded by the recipe"
    profile.layers.loc[profile.layers["layer"] == "blocks.0.mlp.fc1", ["default", "conv_groups", "in_features"]] = [False, 8, 1]
    rows = whatif.outside(profile, PruningChoice()).set_index("layer")
    assert rows.loc["blocks.0.mlp.fc1", "note"].startswith("depthwise convolution")


def test_every_layer_lists_them_below_and_counts_none_of_them():
    at = open_app()
    at.session_state["details"] = True
    at.run()
    assert not at.exception
    tables = [frame.value for frame in at.dataframe]
    outside = next(table for table in tables if "head" in set(table.get("layer", ())) and "removed" not in table)
    assert set(outside["layer"]) == {"patch_embed.proj", "head"}
    assert "**2 more layers** no pattern looks at" in words(at)


def test_what_is_behind_more_is_said_on_the_button_and_below():
    assert "More" in buttons_of_popovers(open_app())
    at = open_app("start=hybrid&merge=3&pattern=n_m&order=snake")
    assert "More · hybrid start, r = 3, snake order" in buttons_of_popovers(at)
    told = words(at)
    assert "hybrid cycles prune to 35 % in steps of 5 %" in told and "every block merges 3 tokens" in told and "reordered (snake)" in told
    assert "merged tokens really go: a run measures it" in told


def buttons_of_popovers(at: AppTest) -> list[str]:
    """Their labels: blocks that AppTest keeps without a class of their own."""
    found, left = [], [at.main]
    while left:
        block = left.pop()
        left += getattr(block, "children", {}).values()
        if getattr(block, "type", "") == "popover":
            found.append(block.proto.popover.label if hasattr(block.proto, "popover") else block.proto.label)
    return found


def test_more_changes_the_choice():
    at = open_app()
    assert at.segmented_control(key="choice.pattern").options == ["Unstructured", "N:M", "Structured"], "nothing is started from yet"
    at.selectbox(key="choice.start").set_value("ser").run()
    at.slider(key="choice.start_sparsity").set_value(0.6).run()
    assert link(at) == {"start": "ser", "start_at": "0.6"} and not at.warning
    at.segmented_control(key="choice.pattern").set_value("kept").run()
    assert link(at)["pattern"] == "kept" and "only in a run" in json.dumps(figure(at))
    at.number_input(key="choice.merge").set_value(2).run()
    at.selectbox(key="choice.start").set_value("dense").run()
    assert link(at) == {"pattern": "kept", "merge": "2"}
    at.number_input(key="choice.merge").set_value(0).run()
    assert link(at) == {}, "nothing is done before pruning any more, so there is nothing to keep"


def test_the_score_gives_way_to_a_pattern_that_is_chosen_and_the_pattern_to_a_score_in_a_link():
    at = open_app("score=cast")
    assert link(at) == {"score": "cast", "pattern": "n_m"}
    assert "CAST (solver)" in at.selectbox(key="choice.score").options
    at.segmented_control(key="choice.pattern").set_value("unstructured").run()
    assert link(at) == {} and not at.warning and "CAST (solver)" not in at.selectbox(key="choice.score").options
    assert "Variance" not in at.selectbox(key="choice.score").options
    assert open_app("score=variance").segmented_control(key="choice.pattern").value == "structured"


def test_the_budget_by_mp_edge_shows_its_cause():
    at = open_app("budget=mp_edge&sparsity=0.5")
    expected = whatif.predict(bundled(), PruningChoice(budget="mp_edge", sparsity=0.5)).layers
    (line,) = [trace for trace in figure(at)["data"] if trace.get("name") == "edge weight w"]
    assert values(line["y"]) == pytest.approx(list(expected["edge_weight"])) and line["yaxis"] == "y2"
    assert "β is 1.25" in words(at) and "the MP edge σ₊" in words(at) and f"to {expected['edge_weight'].max():.2f}" in words(at)
    assert f"up to w = {expected['edge_weight'].iloc[0]:.2f} times" in words(at)
    assert "edges play no part" in words(open_app("budget=mp_edge&sparsity=0.9"))
    at.select_slider(key="choice.beta").set_value("0").run()
    flat = figure(at)
    assert link(at)["beta"] == "0"
    assert lost(flat) == lost(figure(open_app("budget=global&sparsity=0.5")))
    assert "edge weight w" not in [trace.get("name") for trace in figure(open_app("sparsity=0.5"))["data"]]


def test_tokens_merge_only_where_there_are_some():
    st.cache_resource.clear()
    profile = bundled()
    profile.facts.update(name="a resnet", tokens=0, prefix_tokens=0, matmuls={})
    profile.attentions = profile.attentions.iloc[:0]
    store = Store()
    store.save_profile(whatif.profile_key(ModelChoice(name="resnet50", weights="pretrained")), profile)
    at = open_app("model=resnet50")
    assert at.number_input(key="choice.merge").disabled and "plain vision transformers" in words(at)
    at = open_app("model=resnet50&merge=4")
    assert "a resnet cannot merge tokens" in at.warning[0].value
    at.number_input(key="choice.merge").set_value(0).run()
    assert not at.warning and at.get("plotly_chart")


def test_a_start_from_a_file_needs_its_path():
    at = open_app("start=file")
    assert "needs its path" in words(at)
    at.text_input(key="choice.start_path").set_value("/some/pruned.safetensors").run()
    assert not at.error and link(at)["start_file"] == "/some/pruned.safetensors" and at.get("plotly_chart")


def test_the_ledger_is_computed_only_when_opened():
    at = open_app("merge=2")
    before = len(at.get("plotly_chart"))
    at.session_state["ledger_details"] = True
    at.run()
    assert not at.exception and not at.error and len(at.get("plotly_chart")) == before + 1
