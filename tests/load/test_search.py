"""The search for the highest rate within a goal, against simulated servers, and how its result is shown."""

import json
import random
from collections.abc import Callable
from dataclasses import replace
from math import inf, isfinite
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from triojam.client.render import format_seconds
from triojam.load.result.found import ADVICE, CHART_COLUMNS, CHART_ROWS, Found, as_json, render
from triojam.load.result.found_plot import save_plot
from triojam.load.result.timeline import format_rate
from triojam.load.search import CONFIRMED, STEP, AtRate, Outcome, Search, Trial, Verdict

LIMIT = 0.005
BUDGET = 20
RUNS = 60
# The latency of a simulated server by its load; at 1, its goal is just met.
Response = Callable[[float], float]


def sharp(load: float) -> float:
    """Return a latency that jumps at the knee."""
    return 0.001 if load <= 1 else 0.1


def gradual(load: float) -> float:
    """Return a latency that grows as that of a queue, to the goal at four fifths of what it can serve."""
    return 0.001 / (1 - 0.8 * load) if load < 1.25 else 10.0


def run(
    search: Search,
    knee: float,
    response: Response = sharp,
    *,
    noise: float = 0.0,
    seed: int = 0,
    **trial: Any,
) -> Search:
    """Run a search against a simulated server, to its end."""
    chance = random.Random(seed)
    while (rate := search.next_rate()) is not None:
        figure = response(rate / knee) * chance.gauss(1, noise)
        search.record(Trial(rate, figure < LIMIT, rate, figure, **trial))
    assert len(search.trials) <= search.budget
    return search


def replay(*outcomes: tuple[float, str], budget: int = BUDGET) -> Search:
    """Return a search with these trials: "+" held, "-" broke the goal, "?" the client was too slow."""
    search = Search(1000, budget=budget)
    for rate, outcomes_at_rate in outcomes:
        for each in outcomes_at_rate:
            figure = {"+": 0.001, "-": 0.1, "?": 0.02}[each]
            search.record(Trial(rate, each == "+", rate, figure, client_limited=each == "?"))
    return search


def found(search: Search, **more: Any) -> Found:
    """Return what a search has found, with words."""
    words = {"target": "localhost:45000", "goal": "p99<5ms", "figure": "p99", "shown": format_seconds}
    return Found(**{**words, "limit": LIMIT, "search": search, **more})


def near(search: Search, knee: float) -> bool:
    """Return whether the answer is within 10 % of the knee."""
    return search.answer is not None and abs(search.answer.rate / knee - 1) <= 0.1


# The search


@pytest.mark.parametrize("start", [1000, 20_000, 500_000])
@pytest.mark.parametrize("response", [sharp, gradual])
def test_answer_is_near_the_knee_of_a_noisy_server(response: Response, start: float) -> None:
    """With 5 % of noise in the latency, the answer is within 10 % of the knee in 95 of 100 runs."""
    knees = [random.Random(seed).uniform(3000, 100_000) for seed in range(RUNS)]
    searches = [
        run(Search(start, budget=BUDGET), knee, response, noise=0.05, seed=seed)
        for seed, knee in enumerate(knees)
    ]
    right = sum(near(search, knee) for search, knee in zip(searches, knees, strict=True))
    assert right >= 0.95 * RUNS


@pytest.mark.parametrize("knee", [1100, 7777, 18_700, 64_100])
@pytest.mark.parametrize("response", [sharp, gradual])
def test_quiet_server_confirms_both_ends_of_a_narrow_range(response: Response, knee: float) -> None:
    """Without noise, the answer held in three trials, and a rate 5 % higher broke the goal in three."""
    search = run(Search(1000, budget=BUDGET), knee, response)
    assert search.answer is not None
    assert search.above is not None
    assert search.answer.rate <= knee < search.above.rate <= search.answer.rate * (STEP + 0.01)
    assert search.answer.held == len(search.answer.trials) >= CONFIRMED
    assert search.above.held == 0
    assert len(search.above.trials) >= CONFIRMED
    assert search.outcome is Outcome.FOUND


@pytest.mark.parametrize("wrong", range(BUDGET))
@pytest.mark.parametrize("knee", [7777, 18_700, 64_000])
def test_single_wrong_trial_does_not_decide(knee: float, wrong: int) -> None:
    """One wrong trial, whichever it is, leaves the knee in the range; a bad one leaves the answer near it."""
    search, lucky = Search(1000, budget=BUDGET), False
    while (rate := search.next_rate()) is not None:
        holds = (rate <= knee) != (len(search.trials) == wrong)
        lucky = lucky or (holds and rate > knee)
        search.record(Trial(rate, holds, rate, 0.001 if holds else 0.1))
    assert search.answer is not None
    assert search.above is not None
    assert search.answer.rate <= knee < search.above.rate
    assert lucky or near(search, knee)


@pytest.mark.parametrize(
    ("outcomes", "left", "rate"),
    [
        ([], 20, 1000),
        ([], 0, None),
        ([(1000, "+")], 10, 2000),  # up, until a rate breaks the goal
        ([(1000, "+"), (2000, "-")], 10, 2000),  # one bad trial is repeated
        ([(1000, "+"), (2000, "?")], 10, 2000),
        ([(1000, "+"), (2000, "-?+")], 10, 2000),  # the client's own limits decide nothing
        ([(1000, "+"), (2000, "?+")], 10, 4000),
        ([(1000, "+"), (2000, "--")], 10, 1410),  # the middle
        ([(1000, "+"), (2000, "+-+"), (4000, "--")], 10, 2830),
        ([(1000, "--")], 10, 250),  # down, until a rate holds
        ([(1000, "+"), (1050, "--")], 10, 1050),  # narrow: first what may turn out to hold
        ([(1000, "+"), (1050, "---")], 10, 1000),
        ([(1000, "+++"), (1050, "---")], 10, 1000),  # more trials than needed: at both ends in turn
        ([(1000, "++++"), (1050, "---")], 10, 1050),
        ([(1000, "+++"), (1050, "---")], CONFIRMED, None),
        ([(1000, "+"), (2000, "--")], CONFIRMED, 1000),  # few are left: they are for the answer
        ([(1000, "+"), (1500, "-"), (2000, "--")], CONFIRMED, 1000),
        ([(1000, "+"), (1050, "--")], CONFIRMED, 1000),
        ([(1000, "+++"), (1050, "--")], CONFIRMED, 1050),
        ([(1000, "+"), (2000, "+")], CONFIRMED, 2000),
        ([(1000, "+"), (2000, "+-+"), (2100, "---")], 10, 1900),  # a step down
        ([(1000, "+"), (2000, "+-"), (2100, "---")], CONFIRMED, 1900),
        ([(1900, "+"), (2000, "+-+"), (2100, "---")], 10, 1900),  # a step below is known
    ],
)
def test_next_rate_follows_from_the_trials(
    outcomes: list[tuple[float, str]], left: int, rate: float | None
) -> None:
    """Each state of a search has one next rate."""
    assert replay(*outcomes, budget=sum(len(each) for _, each in outcomes) + left).next_rate() == rate


def test_start_below_the_lowest_rate_is_the_lowest() -> None:
    """A search does not go up after its first rate broke the goal."""
    search = run(Search(1000, budget=BUDGET, lowest=5000), 20.0)
    assert {trial.rate for trial in search.trials} == {1000}


def test_answer_goes_down_a_step_if_one_of_its_trials_breaks_the_goal() -> None:
    """A rate that held in two of three trials is no answer; the next one is a step lower."""
    search = replay((8000, "+"), (16_000, "--"), (11_300, "+-+"), (11_800, "--"))
    assert search.next_rate() == 10_800
    for _ in range(CONFIRMED):
        search.record(Trial(10_800, within=True, achieved=10_800, figure=0.001))
    assert search.answer is not None
    assert search.answer.rate == 10_800


@pytest.mark.parametrize(
    ("outcomes", "verdict"),
    [
        ("+", Verdict.HOLDS),
        ("-", Verdict.UNDECIDED),
        ("?", Verdict.UNDECIDED),
        ("+-", Verdict.UNDECIDED),
        ("+-+", Verdict.HOLDS),
        ("+--", Verdict.BROKE),
        ("--", Verdict.BROKE),
        ("++--", Verdict.UNDECIDED),
        ("??", Verdict.CLIENT_LIMITED),
        ("-?", Verdict.UNDECIDED),
        ("-?+", Verdict.UNDECIDED),
        ("+?", Verdict.HOLDS),
        ("+??", Verdict.CLIENT_LIMITED),
        ("-??", Verdict.CLIENT_LIMITED),
        ("--??", Verdict.BROKE),
        ("?--", Verdict.BROKE),
        ("?++", Verdict.HOLDS),
    ],
)
def test_majority_decides_about_a_rate(outcomes: str, verdict: Verdict) -> None:
    """One bad trial decides nothing; trials in which the client was too slow do not blame the server."""
    (at,) = replay((1000, outcomes)).rates
    assert at.verdict is verdict


def test_what_held_above_a_broken_rate_is_no_answer() -> None:
    """A rate that held in three trials is luck if a lower rate broke the goal in most of its trials."""
    search = replay((1000, "+"), (4000, "+++"), (2000, "---"))
    assert search.answer is not None
    assert search.answer.rate == 1000
    assert search.above is not None
    assert search.above.rate == 2000


def test_unanswered_requests_break_a_rate() -> None:
    """A rate does not hold if half the requests failed quickly, even if the latency of the others is good."""
    search = Search(1000, budget=BUDGET)
    while (rate := search.next_rate()) is not None:
        search.record(Trial(rate, within=True, achieved=min(rate, 20_000), figure=0.001))
    assert search.answer is not None
    assert 20_000 <= search.answer.rate <= 22_500
    assert "more than a tenth of the requests got no right answer" in render(found(search))
    search.trials = [replace(trial, within=trial.reached) for trial in search.trials]
    assert "more than a tenth" not in render(found(search))


def test_broken_start_leads_to_lower_rates() -> None:
    """A server whose knee is far below the start has an answer."""
    search = run(Search(1000, budget=BUDGET), 30.0)
    assert near(search, 30.0)


def test_broken_lowest_rate_ends_the_search() -> None:
    """If even the lowest rate breaks the goal, no rate is left to try, and the result says so."""
    search = run(Search(1000, budget=BUDGET, lowest=100), 20.0)
    assert {trial.rate for trial in search.trials} == {1000, 250, 100}
    assert search.outcome is Outcome.ALL_BROKE
    assert "Not even 100 requests a second is within p99<5ms: it held in 0 of 2 trials." in render(
        found(search)
    )


def test_slow_client_is_the_limit_of_the_answer() -> None:
    """If the client cannot send more, the answer is the highest rate that it could send and that held."""
    search = Search(1000, budget=BUDGET)
    while (rate := search.next_rate()) is not None:
        limited = rate > 50_000
        search.record(Trial(rate, not limited, min(rate, 50_000), 0.001, client_limited=limited))
    assert search.outcome is Outcome.CLIENT_LIMIT
    assert near(search, 50_000)
    assert search.answer is not None
    text = render(found(search))
    assert search.above is not None
    assert (
        f"At least {format_rate(search.answer.rate)} requests a second within p99<5ms: "
        f"held in {search.answer.held} of {search.answer.held} trials. "
        f"At {format_rate(search.above.rate)}, this client could not keep up: {ADVICE}."
    ) in text
    assert "The limit is between" not in text


def test_client_that_is_always_too_slow_is_named() -> None:
    """If the client cannot even send at the lowest rate, nothing is said about the server."""
    search = run(Search(1000, budget=BUDGET), 5000, client_limited=True)
    assert search.outcome is Outcome.CLIENT_LIMIT
    assert search.answer is None
    assert f"This client could not keep up even with 1 request a second: {ADVICE}." in render(found(search))


def test_server_without_a_limit_gets_a_lower_bound() -> None:
    """If every rate holds, the result is the highest rate that was tried often enough."""
    search = run(Search(1000, budget=8), inf)
    assert search.outcome is Outcome.NO_LIMIT
    assert search.answer is not None
    assert search.answer.held == CONFIRMED
    assert "The trials ended before a rate broke the goal." in render(found(search))


@settings(deadline=None)  # other tests run beside this one
@given(
    start=st.floats(0.01, 1e7),
    lowest=st.floats(0.01, 1e4),
    budget=st.integers(0, 40),
    outcomes=st.lists(st.sampled_from("+-?"), min_size=40, max_size=40),
)
def test_search_keeps_its_promises_with_any_outcomes(
    start: float, lowest: float, budget: int, outcomes: list[str]
) -> None:
    """With any outcomes, rates stay within bounds, the range keeps its order, and the result can be shown."""
    search = Search(start, budget=budget, lowest=lowest)
    for outcome in outcomes:
        rate = search.next_rate()
        assert rate == search.next_rate()
        if rate is None:
            break
        assert isfinite(rate)
        assert rate >= min(start, lowest)
        for each in search.rates:
            broke_always = len(each.trials) == each.judged and not each.held
            assert not (broke_always and rate >= 2 * each.rate)
        search.record(Trial(rate, outcome == "+", rate, 0.001, client_limited=outcome == "?"))
        _check_answer(search)
    json.loads(as_json(found(search)))
    assert render(found(search))
    assert len(search.trials) <= budget


def _check_answer(search: Search) -> None:
    answer, above = search.answer, search.above
    broke = [each.rate for each in search.rates if each.verdict is Verdict.BROKE]
    if answer is not None:
        assert answer.held == answer.judged >= answer.client_limited
        assert all(answer.rate < rate for rate in broke)
        assert above is None or answer.rate < above.rate
    assert (search.outcome is Outcome.FOUND) <= (answer is not None and above is not None)


# Text, JSON and the plot


def test_text_gives_the_answer_the_range_and_every_rate() -> None:
    """The result has the answer and the rate above it, the range, and a row for each rate."""
    text = render(found(replay((9200, "+"), (18_400, "+++"), (36_800, "--"), (19_300, "---"))))
    assert text.splitlines()[:10] == [
        "localhost:45000, the highest rate within p99<5ms, 9 trials",
        "",
        "18,400 requests a second within p99<5ms: held in 3 of 3 trials; 19,300 held in 0 of 3.",
        "The limit is between 18,400 and 19,300 a second, a range of 5%.",
        "",
        "      rate    achieved         p99      held",
        "     9,200       9,200        1 ms    1 of 1",
        "    18,400      18,400        1 ms    3 of 3  <- the answer",
        "    19,300      19,300      100 ms    0 of 3",
        "    36,800      36,800      100 ms    0 of 2",
    ]


@pytest.mark.parametrize(
    ("outcomes", "sentences"),
    [
        (
            [(1000, "+++"), (1050, "+-"), (1100, "-+++"), (1150, "+--")],
            [
                "The limit is between 1,000 and 1,150 a second, a range of 15%.",
                "The range is wide because the trials disagree.",
                "Between them: 1,050 held in 1 of 2, 1,100 held in 3 of 4 trials.",
            ],
        ),
        (
            [(1000, "+"), (2000, "+"), (4000, "-")],
            [
                "The limit is between 2,000 and 4,000 a second, a range of 100%.",
                "Not sure: 2,000 was tried only once.",
                "Not sure: 4,000 was tried only once.",
                "The range is wide because there were too few trials.",
            ],
        ),
        (
            [(1000, "++"), (1050, "---")],
            [
                "The limit is between 1,000 and 1,050 a second, a range of 5%.",
                "Not sure: 1,000 was tried only 2 times.",
            ],
        ),
        (
            [(1000, "+++"), (1020, "-"), (1050, "---")],
            [
                "The limit is between 1,000 and 1,050 a second, a range of 5%.",
                "Not sure: 1,020 was tried only once.",
            ],
        ),
        (
            [(1000, "++?"), (1050, "-?")],
            [
                "The limit is between 1,000 and 1,050 a second, a range of 5%.",
                "Not sure: 1,000 was tried only 2 times.",
                "Not sure: 1,050 was tried only once.",
            ],
        ),
        ([(1000, "+++"), (2000, "?")], ["Not sure: 2,000 was tried only once."]),
        ([(1000, "+++"), (1050, "---")], ["The limit is between 1,000 and 1,050 a second, a range of 5%."]),
        ([(1000, "-+-+"), (1050, "---")], ["The trials disagree: 1,000 held in 2 of 4 trials."]),
    ],
)
def test_text_says_how_sure_the_answer_is(outcomes: list[tuple[float, str]], sentences: list[str]) -> None:
    """Few trials, trials that disagree and a wide range are named; otherwise there is only the range."""
    lines = render(found(replay(*outcomes))).splitlines()
    assert lines[3 : lines.index("", 3)] == sentences


def test_table_leaves_out_trials_in_which_the_client_was_too_slow() -> None:
    """A row has the figures of the trials that say something about the server, if there is one."""
    lines = render(found(replay((1000, "+??+"), (2000, "??")))).splitlines()
    assert (
        "     1,000       1,000        1 ms    2 of 2  <- the answer, 2 not counted: the client was too slow"
        in lines
    )
    assert "     2,000       2,000       20 ms    0 of 0  2 not counted: the client was too slow" in lines


def test_chart_marks_each_trial_above_or_below_the_goal() -> None:
    """A trial that broke the goal is above the line in the middle, one that held is below it."""
    text = render(found(replay((1000, "+"), (2000, "-"), (4000, "?"))))
    rows = text.splitlines()[-CHART_ROWS - 3 : -3]
    assert [row for row, line in enumerate(rows) if "o" in line] == [CHART_ROWS - 2]
    assert [row for row, line in enumerate(rows) if "x" in line] == [0]
    assert rows[CHART_ROWS // 2].startswith("     5 ms |---")
    assert rows[0].startswith("    10 ms |")
    assert all(len(line) <= 11 + CHART_COLUMNS for line in rows)


def test_chart_shows_the_end_of_a_search_that_began_too_high() -> None:
    """Rates far above the limit are not on the chart, which would have no columns left for the others."""
    shown = found(run(Search(1_000_000, budget=BUDGET), 5000))
    assert shown.largest_shown < 20_000
    assert render(shown).splitlines()[-2].endswith(format_rate(shown.largest_shown))


@pytest.mark.parametrize("trials", range(BUDGET))
def test_interrupted_search_shows_what_is_known(trials: int, tmp_path: Path) -> None:
    """After any number of trials there is a result, which says that the search was interrupted."""
    search = run(Search(1000, budget=BUDGET), 18_700, gradual, noise=0.05)
    search.trials = search.trials[:trials]
    shown = found(search, interrupted=True)
    number = len(search.trials)
    assert render(shown).startswith(
        f"localhost:45000, the highest rate within p99<5ms, {number} of 20 trial{'' if number == 1 else 's'}"
    )
    assert "The search was interrupted." in render(shown)
    assert json.loads(as_json(shown))["interrupted"] is True
    assert ("No trial has ended" in render(shown)) is not bool(number)
    save_plot(shown, tmp_path / "found.svg")


def test_json_has_answer_rates_and_trials() -> None:
    """The JSON has the outcome, the answer, each rate and each trial; an infinite figure is null."""
    search = replay((1000, "+++"), (1050, "--"))
    search.record(replace(search.trials[-1], figure=inf))
    data = json.loads(as_json(found(search)))
    assert data["outcome"] == "found"
    assert data["certain"] is True
    assert data["answer"] == {"rate": 1000, "held": 3, "judged": 3, "client_limited": 0, "verdict": "holds"}
    assert data["above"]["rate"] == 1050
    assert [each["rate"] for each in data["rates"]] == [1000, 1050]
    assert len(data["trials"]) == 6
    assert data["trials"][-1]["figure"] is None
    assert data["trials"][0]["held"] is True
    assert json.loads(as_json(found(replay((1000, "+"), (1050, "-")))))["certain"] is False


@pytest.mark.parametrize("limit", [0.0, LIMIT, 10.0])
def test_plot_has_the_goal_and_the_answer(limit: float, tmp_path: Path) -> None:
    """The picture has a line for the goal and one for the answer, also with infinite figures."""
    search = replay((1000, "+++"), (1050, "--"), (2000, "?"))
    search.record(Trial(4000, within=False, achieved=0, figure=inf))
    search.record(Trial(500, within=True, achieved=500, figure=0.0))
    shown = found(search, limit=limit)
    save_plot(shown, tmp_path / "found.svg")
    save_plot(shown, tmp_path / "found.png")
    text = (tmp_path / "found.svg").read_text("utf-8")
    for words in ("p99&lt;5ms", "1,000 a second", "requests a second", "client too slow"):
        assert words in text
    assert (tmp_path / "found.png").read_bytes().startswith(b"\x89PNG")
    assert render(shown)


def test_trials_at_one_rate_belong_together() -> None:
    """Trials are grouped by rate, the lowest first."""
    search = replay((2000, "-"), (1000, "+"), (2000, "+"))
    assert search.rates == [
        AtRate(1000, (search.trials[1],)),
        AtRate(2000, (search.trials[0], search.trials[2])),
    ]
