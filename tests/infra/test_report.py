"""The page is whole HTML with everything inside it, says what was not measured, and trusts no name."""

import base64
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from infra.report import Story, page
from tests.helpers import make_dataset
from trainers.config import train_preset
from trainers.evaluation.control import ControlScorecard, ReturnScore
from trainers.evaluation.planning import PlanningScore
from trainers.evaluation.probes import ProbeScore
from trainers.evaluation.scorecard import ProbeResult, ProbeScorecard, read_scorecard, verdict, write_scorecard
from trainers.rundir import Run, RunRecord

VOID = {"meta", "img", "br", "path", "use", "line", "rect"}
PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR4nGNgYGBgAAAABQABh6FO1AAAAABJRU5ErkJggg=="
)


class Checked(HTMLParser):
    """Tags in their order; every one that opens closes."""

    def __init__(self):
        super().__init__()
        self.open, self.links, self.text = [], [], ""

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def read(html):
    parser = Checked()
    parser.feed(html)
    assert parser.open == []
    return parser


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    dataset = make_dataset(tmp_path_factory.mktemp("data") / "set", n=4)
    score = ProbeScore("x", "one_frame", 0.95, 0.93, 0.97, 0.98, 0.97, 0.99, 0.05, 0.04, 0.06, 1e-3)
    results = tuple(ProbeResult("lewm", "linear", window, (score,)) for window in (1, 3))
    return Story(
        name="runs & <b>names</b>",
        config=train_preset("tiny", str(dataset.path)),
        dataset=dataset,
        parameters=1_234_567,
        run_id="0123",
        tags={"mlflow.source.git.commit": "c0ffee" * 6},
        history={"val/prediction": [(100, 0.5), (200, 0.25)], "train/prediction": []},
        pictures={"probe_scatter": PIXEL},
        clips={},
        probe=ProbeScorecard("test", 30, 10, 4, results, (verdict(results, "linear"),), 0.95, 0.94, 70.0, 256),
        surprise=None,
        plan=PlanningScore(16, "test", 20, 1.0, 0.2, 0.5, 0.8, 0.5, 1.0, 0.1, "cem"),
        control=None,
    )


def test_everything_is_in_the_page(story):
    html = page([story])
    found = read(html)
    assert all(link.startswith(("data:", "#")) for link in found.links)
    assert not re.search(r"<script|https?://(?!www\.w3\.org|purl\.org|creativecommons\.org)[a-z]", html.lower())
    for words in ("0.950", "[0.930, 0.970]", "1 of 1", "1,234,567", "80%", "c0ffeec0ffee", story.dataset.digest[:16]):
        assert words in found.text
    assert base64.b64encode(PIXEL).decode() in html
    assert "<svg" in html


def test_names_are_text(story):
    html = page([story])
    assert "<b>names</b>" not in html
    assert "runs &amp; &lt;b&gt;names&lt;/b&gt;" in html


def test_what_was_not_measured_is_said_with_its_command(story):
    text = read(page([replace(story, name="mine", probe=None, plan=None, history={}, pictures={})])).text
    for command in ("lewm train", "lewm probe mine", "lewm surprise mine", "lewm plan mine", "lewm control mine"):
        assert command in text


def test_runs_stand_side_by_side(story):
    control = ControlScorecard("toy", 50, 0, 30, 8, (ReturnScore("plan", 20, 7.0, 6.5, 7.5, None, None, None, 1.5),))
    found = read(page([replace(story, name="one"), replace(story, name="two", control=control)]))
    assert found.text.count("one") >= 2
    assert "7.0 [6.5, 7.5]" in found.text
    assert "imitates a state expert, in 8 episodes" in found.text


def test_a_scorecard_of_another_version_is_named(story, tmp_path):
    record = RunRecord("r", "0", story.dataset.digest, "dmc/x", "0")
    run = Run.create(tmp_path / "run", story.config, record)
    assert read_scorecard(run.path, "plan", PlanningScore) is None
    write_scorecard(run.path, "plan", story.plan)
    assert read_scorecard(run.path, "plan", PlanningScore) == story.plan
    (run.path / "scorecards" / "plan.json").write_text('{"goals": 3}')
    with pytest.raises(ValueError, match=r"plan\.json is of another version .*run `lewm plan` again"):
        read_scorecard(run.path, "plan", PlanningScore)
