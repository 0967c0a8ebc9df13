"""Costs: what is measured, against counts that are known. Every family: test_families.py."""

import torch

from limelight.utils import measure
from limelight.utils.measure import Cost, median_ratio
from limelight.validate import cost


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
    monkeypatch.setattr(cost, "STEPS", 2)
    outcome = check(tiny, "cost")["cost"]
    seconds = {name.removeprefix("seconds, "): value for name, value in outcome.numbers.items() if "seconds, " in name}
    assert seconds == {
        "one pass, one branch": 1,
        "one pass, both branches": 1,
        "gradient step": 1,
        "plain run": 2,
        "plain run, diffusers": 2,
        "guided run (recommended)": 4,
        "audition of four seeds": seconds["audition of four seeds"],
        "Attend-and-Excite": 6,
        "Attend-and-Excite, diffusers": seconds["Attend-and-Excite, diffusers"],
    }
    assert outcome.numbers["seconds over diffusers', plain run"] == 1
    assert outcome.facts["turns"] == 1  # no time for more


def test_memory_and_time_are_of_the_work_alone(tiny):
    spent = measure.measured(lambda: torch.ones(64 * 2**20 // 4).sum(), torch.device("cpu"))
    assert 0.05 < spent.gibibytes < 0.2
    assert spent.seconds > 0
