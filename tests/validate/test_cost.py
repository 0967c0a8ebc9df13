"""Costs: what is measured, against counts that are known."""

import pytest

import limelight
from limelight.utils import measure
from limelight.utils.measure import Cost, median_ratio
from limelight.validate import cost
from tests import transformers as families


def test_pairs_of_turns():
    assert median_ratio([Cost(1, 0), Cost(9, 0), Cost(4, 0)], [Cost(2, 0), Cost(1, 0), Cost(2, 0)]) == 2


def test_every_way_takes_its_turn(check, tiny, monkeypatch):
    """One pass counts as one second, so that all numbers are known."""
    passes = [0]

    def count(module, inputs):
        passes[0] += 1

    tiny.denoiser.register_forward_pre_hook(count)

    def counted(run, device):
        start = passes[0]
        run()
        return Cost(passes[0] - start, 0.5)

    monkeypatch.setattr(cost, "measured", counted)
    outcome = check(tiny, "cost")["cost"]
    seconds = {name.removeprefix("seconds, "): value for name, value in outcome.numbers.items() if "seconds, " in name}
    assert seconds == {
        "one pass, one branch": 1,
        "one pass, both branches": 1,
        "gradient step": 1,
        "plain run": 4,
        "plain run, diffusers": 4,
        "guided run (recommended)": 8,
        "audition of four seeds": seconds["audition of four seeds"],
        "Attend-and-Excite": 12,
        "Attend-and-Excite, diffusers": seconds["Attend-and-Excite, diffusers"],
    }
    assert outcome.numbers["seconds over diffusers', plain run"] == 1
    assert outcome.facts["turns"] == 1  # no time for more


def test_memory_and_time_are_of_the_work_alone(tiny):
    import torch

    spent = measure.measured(lambda: torch.ones(64 * 2**20 // 4).sum(), torch.device("cpu"))
    assert 0.05 < spent.gibibytes < 0.2
    assert spent.seconds > 0


@pytest.mark.parametrize("name", ["flux", "sd3"])
def test_transformers(check, name):
    outcome = check(limelight.load(getattr(families, name)()), "cost")["cost"]
    assert outcome.verdict == "measured"
    assert "plain run" in outcome.summary
