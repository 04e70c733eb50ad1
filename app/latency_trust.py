"""Whether two rows may be compared, what the device's sensors said, and what the machine was."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from app import frame, latency_rows, state
from app.charts import theme
from starfish_lab.latency.comparable import caution, comparable

_number = st.column_config.NumberColumn
SENSORS = {
    "run": _number("Run", width="small"), "batch": _number("Batch", width="small"),
    "start": _number("Start", width="small", help="The fresh process it was read in."), "when": "When", "throttled": "Throttled",
    "sm_clock_mhz": _number("SM clock (MHz)"),
    "memory_clock_mhz": _number("Memory clock (MHz)"), "temperature_c": _number("Temperature (°C)"), "power_w": _number("Power (W)", format="%.4g"),
    "power_limit_w": _number("Power limit (W)", format="%.4g"), "throttle": "Held back by", "ecc": "ECC", "mig": "MIG",
}  # fmt: skip


FACTS = {"run": _number("Run", width="small"), "name": "Fact", "value": st.column_config.TextColumn("Value", width="large")}


def warnings(rows: pd.DataFrame, sensors: pd.DataFrame) -> None:
    """What a reader should know before believing a figure: throttling, and what would not run."""
    found: dict[tuple[int, str], dict[str, None]] = {}
    for run, when, reasons in latency_rows.throttled(sensors):
        found.setdefault((run, reasons), {})[when] = None  # several starts may say the same
    for (run, reasons), when in found.items():
        st.warning(
            f"**Throttled:** in run {run} the device was held back by {reasons} ({', '.join(when)}). Its figures are of a slowed device: "
            "let it cool and measure again.",
            icon=":material/thermostat:",
        )  # fmt: skip
    refused = latency_rows.refused(rows)
    if refused:
        with st.expander(f"{len(refused)} not timed, and why"):
            for execution, reason in refused:
                st.markdown(f"- {latency_rows.spoken(execution)}: {reason}")


def pair(rows: pd.DataFrame, hollow: pd.DataFrame) -> None:
    """Two rows of any machine, measured or published: comparable or not, and why not."""
    known, titles = {}, {}
    for row in latency_rows.timed(rows).sort_values(["run", "batch"], ascending=False, kind="stable").itertuples() if len(rows) else ():
        known[latency_rows.key(row)], titles[latency_rows.key(row)] = row._asdict(), latency_rows.title(row)
    for row in hollow.itertuples():
        name = f"published.{row.gpu}.{row.model}.{row.execution}.{row.batch}"
        known[name], titles[name] = row._asdict(), f"published · {row.model}, {row.execution} · batch {row.batch} · {row.gpu}"
    names = list(known)
    if len(names) < 2:
        st.info("Two rows are needed, and there are not two yet.", icon=":material/info:")
        return
    chosen = []
    for place, label in enumerate(("First", "Second")):
        name, usual = ("first", "second")[place], names[place]
        if state.get(name, usual) not in known:
            state.put(name, None)
        chosen.append(st.selectbox(label, names, format_func=titles.get, **state.tie_value(name, usual)))
    first, second = (known[name] for name in chosen)
    reasons = why_not(first, second)
    if not reasons:
        ratio = second["images_per_s"] / first["images_per_s"]
        st.badge("comparable", icon=":material/check_circle:", color="green")
        rates = " against ".join(theme.number(row["images_per_s"]) for row in (second, first))
        st.markdown(f"The second runs at **{ratio:.2f}×** the first: {rates} images/s.")
        if mind := caution(first, second):
            st.caption(theme.sentence(mind) + ".")
        return
    st.badge("not comparable", icon=":material/block:", color="orange")
    st.markdown("\n".join(f"- {theme.sentence(reason)}" for reason in reasons))


def why_not(first: dict, second: dict) -> list[str]:
    """Reasons why two rows are not to be compared; none where they may be. What nobody noted of a row decides nothing."""
    return comparable(*({name: None if value == "" else value for name, value in row.items()} for row in (first, second)))


def sensors(readings: pd.DataFrame, hardware: pd.DataFrame) -> None:
    """Clocks, temperature and power before and after, and the facts behind the fingerprint."""
    told = readings["throttle"] if "throttle" in readings else pd.Series(None, index=readings.index, dtype=object)
    held = [None if pd.isna(reasons) else "throttled" if latency_rows.held_back(reasons) else "no" for reasons in told]
    shown = readings.assign(throttled=pd.Series(held, index=readings.index, dtype=object))
    there = [name for name in SENSORS if name in shown and not shown[name].isna().all()]
    if not set(there) - {"run", "batch", "start", "when"}:
        st.info("No sensors were read in these runs: clocks, temperature and power come from NVIDIA's NVML, so only its GPUs have them.")
    else:
        frame.table(shown[there], key="latency_sensors", column_config={name: SENSORS[name] for name in there}, placeholder="–")
        st.caption("Read before and after the race of each batch size, never set. What happened between two readings is not seen.")
    if len(hardware):
        frame.table(hardware.assign(value=hardware["value"].map(str)), key="latency_hardware", column_config=FACTS)
        st.caption("The facts whose hash is the fingerprint. No host name and no serial number is among them.")
