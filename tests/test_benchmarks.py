"""The benchmarks' own logic: what is chosen, weighed, shown and written; and a few cases with few messages."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from rich.console import Console

from benchmarks import chart, environments, keeping, report
from benchmarks.__main__ import PAGE, main
from benchmarks.comparisons import COMPARISONS, LOADS, Comparison, UnknownWord, cases_of, chosen
from benchmarks.latency import percentiles
from benchmarks.machine import machine, versions
from benchmarks.outcomes import weigh
from benchmarks.running import Bench, finish, run_rounds
from benchmarks.waiting import Order
from tests.servers import Kafka
from tests.servers.processes import wait_until
from tests.test_servers import alive

RATIO = Comparison(name="produce", ours="our_produce", against="raw_produce", promised=0.8)
FULL = {"raw_produce": [{"per_second": 90.0}, {"per_second": 100.0}, {"per_second": 900.0}]}


def rows(*figures: float) -> list[dict[str, float]]:
    return [{"per_second": figure} for figure in figures]


# --- what is chosen ---------------------------------------------------------------------------------------------------


def test_a_wrong_word_names_the_comparisons_that_there_are() -> None:
    with pytest.raises(UnknownWord, match=r"'consumee'.*consume no-op, client's best"):
        chosen(["produce", "consumee"])


def test_a_wrong_word_ends_the_command_before_a_server_is_started(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["nothing-like-it"])
    assert "produce one by one" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--rounds", "0"], ["--messages", "-5"], ["produce", "--write"]])
def test_what_makes_no_sense_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments)


def test_a_case_runs_once_a_round_whatever_number_of_comparisons_need_it() -> None:
    cases = cases_of(list(COMPARISONS))
    assert len(cases) == len(set(cases))
    assert cases.index("raw_consume") < cases.index("our_consume")


def test_every_case_has_a_program() -> None:
    from benchmarks.cases import find

    for case in {*cases_of(list(COMPARISONS)), *LOADS}:
        peer = environments.peer_of(case)
        if peer is None:
            assert find(case).__doc__
        else:
            assert (Path(environments.__file__).parent / "peers" / f"with_{peer}.py").exists()


def test_no_promise_is_weaker_than_it_was_made() -> None:
    promised = {one.name: one.promised for one in COMPARISONS if one.promised is not None}
    assert promised["produce one by one"] >= 0.8
    assert promised["produce batch"] >= 1.0
    assert promised["consume no-op, client's best"] >= 0.5
    assert promised["consume no-op, client's defaults"] >= 2.0
    assert promised["consume batch"] >= 0.9
    assert promised["consume by key, a key each"] >= 0.25
    assert promised["watched, consume no-op against uncounted"] >= 0.95
    assert promised["watched, produce against uncounted"] >= 0.97
    assert promised["watched, a scrape of 200 partitions, p95"] <= 20
    assert promised["insert, transaction a batch"] >= 2.5
    assert promised["insert, bulk handler"] >= 0.9
    assert promised["waiting 5 ms, 64 threads, of the ideal"] >= 0.9
    assert promised["waiting 5 ms, 256 async, of the ideal"] >= 0.7
    assert promised["latency p99, 1,000 a second"] <= 2.0
    assert promised["memory of the worker, all waiting"] <= 150


# --- what is weighed --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ours", "kept", "mark"), [((80.0,), True, "✓"), ((79.0,), False, "✗")])
def test_a_ratio_of_medians_is_held_against_the_promise(ours: tuple[float, ...], kept: bool, mark: str) -> None:
    outcome = weigh(RATIO, {**FULL, "our_produce": rows(*ours)})
    assert (outcome.against, outcome.ratio) == (100.0, pytest.approx(ours[0] / 100))
    assert (outcome.kept, outcome.mark) == (kept, mark)


def test_of_a_ceiling_the_worst_round_counts() -> None:
    ceiling = Comparison(name="memory", ours="our_memory", figure="peak_mib", kind="at most", promised=150)
    found = {"our_memory": [{"peak_mib": 90.0}, {"peak_mib": 160.0}, {"peak_mib": 91.0}]}
    assert weigh(ceiling, found).kept is False


@pytest.mark.parametrize(("ours", "kept"), [(6.9, True), (7.1, False)])
def test_latency_may_be_so_much_above_the_raw_one(ours: float, kept: bool) -> None:
    above = Comparison(
        name="latency", ours="our_latency", against="raw_latency", figure="p99_ms", kind="at most above", promised=2.0
    )
    assert weigh(above, {"our_latency": [{"p99_ms": ours}], "raw_latency": [{"p99_ms": 5.0}]}).kept is kept


def test_what_is_missing_is_no_number_and_breaks_no_promise() -> None:
    outcome = weigh(RATIO, {**FULL, "our_produce": [{"missing": "not available yet"}]})
    assert (outcome.ours, outcome.ratio, outcome.kept, outcome.mark) == (None, None, None, "missing")
    assert "our_produce: not available yet" in outcome.missing


def test_a_case_that_fails_breaks_its_promise() -> None:
    outcome = weigh(RATIO, {**FULL, "our_produce": [*rows(900), {"failed": "Code 1. AssertionError"}]})
    assert (outcome.kept, outcome.mark, outcome.ours) == (False, "✗", None)


def test_messages_of_a_key_that_overlap_or_change_places_are_violations() -> None:
    order = Order()
    order.begin(b"a", 5)
    order.begin(b"b", 4)
    assert (order.violations, order.most) == ([], 2)
    order.begin(b"a", 6)
    order.end(b"a")
    order.begin(b"a", 3)
    assert len(order.violations) == 2


def test_percentiles_leave_out_the_first_messages() -> None:
    slow_start = [10**9] * 100 + [1_000_000] * 900
    assert percentiles(slow_start) == {"p50_ms": 1.0, "p99_ms": 1.0}


# --- what is shown and written ----------------------------------------------------------------------------------------


def outcomes_and_results() -> tuple[list[Any], dict[str, Any]]:
    results = {**FULL, "our_produce": rows(85, 90, 95), "aiokafka_produce": [{"missing": "cannot be installed"}]}
    peer = Comparison(name="produce, aiokafka", ours="our_produce", against="aiokafka_produce", promised=1.0)
    return [weigh(RATIO, results), weigh(peer, results)], results


def test_the_table_shows_ratio_promise_and_what_is_missing() -> None:
    console = Console(width=140, record=True, file=io.StringIO())
    outcomes, _results = outcomes_and_results()
    console.print(report.table(outcomes, "title"))
    text = console.export_text()
    assert "0.90" in text
    assert "ratio at least 0.8" in text
    assert "missing" in text
    assert report.reasons(outcomes) == ["missing: aiokafka_produce: cannot be installed"]


def test_the_json_holds_spread_versions_and_machine_and_no_name_or_path_of_it() -> None:
    outcomes, results = outcomes_and_results()
    text = report.as_json(outcomes, results, machine=machine(), versions=versions(), run={"rounds": 3})
    read = json.loads(text)
    assert read["cases"]["our_produce"]["per_second"] == {"min": 85, "median": 90, "max": 95}
    assert read["comparisons"][1]["our_figure"] is None
    assert {"processor", "cores", "memory", "system", "Python"} <= read["machine"].keys()
    assert {"Apache Kafka", "confluent-kafka", "librdkafka", "Django"} <= read["versions"].keys()
    for private in (os.uname().nodename, str(Path.cwd()), sys.prefix, str(Path.home()) + "/"):
        assert private not in text


def test_the_chart_is_svg_for_light_and_dark_and_leaves_out_what_is_missing() -> None:
    _outcomes, results = outcomes_and_results()
    drawn = chart.draw(results)
    root = ElementTree.fromstring(drawn)
    assert len(root.findall(".//{http://www.w3.org/2000/svg}rect")) == 2
    assert "prefers-color-scheme:dark" in drawn
    lines = root.findall(".//{http://www.w3.org/2000/svg}line")
    assert [float(one.attrib["x1"]) < float(one.attrib["x2"]) for one in lines] == [True, True], (
        "from least to greatest"
    )
    assert "aiokafka" not in drawn


def test_the_docs_are_written_between_their_markers_only(tmp_path: Path) -> None:
    outcomes, _results = outcomes_and_results()
    page = tmp_path / "page.md"
    page.write_text(f"before\n{report.BEGIN}\nold figures\n{report.END}\nafter\n", "utf-8")
    for _twice in range(2):
        text = report.as_markdown(outcomes, machine={"cores": "2"}, versions={"x": "1"}, title="T", chart="c.svg")
        report.write_between_markers(page, text)
    written = page.read_text("utf-8")
    assert written.startswith("before\n")
    assert written.endswith("after\n")
    assert "old figures" not in written
    assert written.count("| produce |  | 3 | 90/s (85–95) | 100/s (90–900) | 0.90 |") == 1


def test_a_page_without_markers_is_refused(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("nothing here", "utf-8")
    with pytest.raises(ValueError, match=r"page\.md has no markers"):
        report.write_between_markers(page, "text")


def test_the_docs_have_the_markers() -> None:
    page = PAGE.read_text("utf-8")
    assert page.index(report.BEGIN) < page.index(report.END)


# --- how it runs ------------------------------------------------------------------------------------------------------


def test_rounds_are_interleaved_and_what_is_missing_is_not_run_again() -> None:
    ran: list[str] = []
    said: list[str] = []

    def run(case: str) -> dict[str, Any]:
        ran.append(case)
        return {"missing": "why"} if case == "b" else {"per_second": 1.0}

    results = run_rounds(run, ["a", "b", "c"], 2, said.append)
    assert ran == ["a", "b", "c", "c", "a"], "every second round goes backwards, so that nobody always comes first"
    assert [len(results[case]) for case in "abc"] == [2, 1, 2]
    assert "round 2 of 2" in said[-1]
    assert "left" in said[0]


def test_what_an_interrupted_run_measured_is_kept_and_gone_on_with(tmp_path: Path) -> None:
    file, run, here = tmp_path / "latest.json", {"messages": 10, "sources": "abc"}, {"cores": "2"}

    def keep(rows: Any, *, complete: bool = False) -> None:
        keeping.keep(file, report.as_json([], rows, machine=here, versions={"x": "1"}, run=run, complete=complete))

    ran: list[str] = []

    def measure(case: str) -> dict[str, Any]:
        ran.append(case)
        if len(ran) == 6:
            raise KeyboardInterrupt
        return {"missing": "no pip"} if case == "b" else {"per_second": float(len(ran))}

    with pytest.raises(KeyboardInterrupt):
        run_rounds(measure, ["a", "b", "c"], 3, lambda _line: None, keep=keep)
    assert ran == ["a", "b", "c", "c", "a", "a"]
    before, named = keeping.resumed(file, run, here)
    results = run_rounds(measure, ["a", "b", "c"], 3, lambda _line: None, before=before, keep=keep)
    assert named == {"x": "1"}
    assert ran[6:] == ["b", "a", "c"], "what is there is not measured again; what was missing is looked for again"
    assert [row["per_second"] for row in results["a"]] == [1, 5, 8]
    keep(results, complete=True)
    with pytest.raises(keeping.CannotResume, match="came to its end"):
        keeping.resumed(file, run, here)
    assert keeping.usual_seconds(file).keys() == {"a", "b", "c"}


@pytest.mark.parametrize(
    ("run", "cores", "why"),
    [
        ({"messages": 20, "sources": "abc"}, "2", r"messages: 10, now 20"),
        ({"messages": 10, "sources": "new"}, "2", r"sources: 'abc', now 'new'"),
        ({"messages": 10, "sources": "abc"}, "8", r"machine: cores: '2', now '8'"),
    ],
)
def test_another_run_is_not_gone_on_with(tmp_path: Path, run: dict[str, Any], cores: str, why: str) -> None:
    file = tmp_path / "latest.json"
    with pytest.raises(keeping.CannotResume, match="not there"):
        keeping.resumed(file, run, {"cores": cores})
    kept = {"messages": 10, "sources": "abc"}
    keeping.keep(file, report.as_json([], {}, machine={"cores": "2"}, versions={}, run=kept, complete=False))
    with pytest.raises(keeping.CannotResume, match=why):
        keeping.resumed(file, run, {"cores": cores})


def test_the_code_that_was_measured_is_told_apart(tmp_path: Path) -> None:
    assert keeping.sources() == keeping.sources()
    (tmp_path / "django_kafka").mkdir()
    module = tmp_path / "django_kafka" / "lanes.py"
    module.write_text("one")
    before = keeping.sources(tmp_path)
    module.write_text("two")
    assert keeping.sources(tmp_path) != before


def test_the_table_says_where_one_side_was_given_fewer_messages() -> None:
    results = {
        "our_produce": [{"per_second": 9.0, "messages": 1000}],
        "raw_produce": [{"per_second": 1.0, "messages": 250}],
    }
    outcome = weigh(RATIO, results)
    assert report.cells(outcome)[:3] == ("produce", "1,000 and 250", "1")


def test_a_program_that_fails_is_named_with_its_last_words() -> None:
    row = finish([sys.executable, "-c", "raise SystemExit('the topic is gone')"], dict(os.environ), 30)
    assert row["failed"] == "Code 1. the topic is gone"


def test_a_program_that_takes_too_long_is_ended_with_what_it_started(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    parent = f"sleep 600 & echo $! > {note}; wait"
    row = finish(["sh", "-c", parent], dict(os.environ), 2)
    assert "still ran" in row["failed"]
    child = int(note.read_text())
    wait_until(lambda: not alive(child), message="what it started still runs")


def test_a_peer_that_cannot_be_installed_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(environments.PEERS, "aiokafka", str(tmp_path / "no-such-package"))
    with pytest.raises(environments.Missing, match="cannot be installed here"):
        environments.interpreter("aiokafka", tmp_path / "environments")


def test_a_few_cases_run_on_a_real_broker(kafka: Kafka, capsys: pytest.CaptureFixture[str]) -> None:
    bench = Bench(kafka, lambda: "", 2000)
    for case in ("raw_produce", "our_produce", "our_produce_batch", "raw_consume", "our_consume"):
        row = bench.run(case)
        assert row.get("per_second", 0) > 0, (case, row)
        assert row["peak_mib"] > 10


def test_a_setting_that_this_version_lacks_is_told_as_missing(kafka: Kafka, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.comparisons import Load

    monkeypatch.setitem(LOADS, "our_consume", Load(consumer={"deduplicate": "benchmarks.consuming.ignore"}))
    row = Bench(kafka, lambda: "", 10).run("our_consume")
    # When the setting is there, take another one that is not; when none is left, this test has done its work.
    assert row["missing"].startswith("not available yet: ")
