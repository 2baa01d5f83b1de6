"""What is claimed of LeWorldModel, by the article of that name and by the paper (LeWM, arXiv 2603.19312).

A claim says what it says, how it is measured here, by which command, and where its figure is looked up (`findings`).
One that has no figure yet says on what it would be measured. `lewm bench claims` makes docs/claims.md of them.
"""

from collections.abc import Callable
from dataclasses import dataclass

from infra import findings
from infra.findings import Finding, Tables

_GPU = "a GPU"
_OFFICIAL = "the authors' datasets and weights (`lewm shards import`, `lewm models import`), and a GPU"
_LARGE = (
    ("obstacle", "small"),
    ("obstacle", "medium"),
    ("obstacle", "large"),
    ("teleport", "large"),
    ("pose", "large"),
)
_TELEPORTS = (("teleport", "medium"), ("teleport", "large"), ("pose", "medium"), ("pose", "large"))


@dataclass(frozen=True, slots=True)
class Claim:
    """One claim. `needs` is what it takes to measure it, said while there is no finding."""

    said: str
    protocol: str
    command: str
    find: Callable[[Tables], Finding | None]
    needs: str = _GPU


def _never(tables: Tables) -> Finding | None:
    """For what no table holds."""
    return None


def _probed(environment: str) -> Claim:
    return Claim(
        f"R2 > {findings.THRESHOLD} for position, velocity and joint angle: `{environment}`",
        "linear probes on held-out episodes; every column declared observable; velocities from three latents",
        f"lewm run {environment} --csv docs/results",
        findings.probes(environment),
        "`lewm run` of this task (small: an hour on 2 cores)",
    )


def _control(environment: str, target: float, said: str) -> Claim:
    return Claim(
        said,
        "planning on reward heads over frozen latents; the prior imitates a state expert (DAgger), which is disclosed",
        f"lewm run {environment} --scale full --csv docs/results",
        findings.returns(environment, target),
        "a GPU and `--scale full`, 3 training seeds",
    )


ARTICLE = (
    Claim(
        "about 15 million parameters",
        "counted, for 2-d actions",
        "lewm presets --action-size 2",
        findings.article_parameters,
    ),
    _probed("dmc/cartpole-swingup"),
    _probed("dmc/walker-walk"),
    _probed("metaworld/pick-place-v3"),
    _control("dmc/walker-walk", 985, "Walker Walk return 985 +- 5 (not in the paper, which has no reward)"),
    Claim(
        "Walker Walk 985 by imitation",
        "the state expert that labels for the prior is a ceiling of imitation, and is measured by itself",
        "lewm bench experts --csv docs/results/experts.csv",
        findings.expert_ceiling("dmc/walker-walk", 985),
    ),
    Claim(
        "Meta-World Pick-Place is solved (not in the paper); our aim: success of 0.95 or more",
        "as Walker Walk, success over at least 50 episodes",
        "lewm run metaworld/pick-place-v3 --scale full --csv docs/results",
        findings.success("metaworld/pick-place-v3", 0.95),
        "a GPU and `--scale full`, 3 training seeds",
    ),
    Claim(
        "planning takes under 1 s an episode, with 100 candidates",
        "50 decisions, a plan for every five, frames encoded; 1 and 10 iterations of CEM",
        "lewm bench plan --csv docs/results/plan.csv",
        findings.article_episode,
    ),
    Claim(
        "48 times as fast as DINO-WM",
        "both tuned, one solver, the same candidates, in turns; DINO-WM is a twin of its shapes",
        "lewm bench plan --csv docs/results/plan.csv",
        findings.ratio,
    ),
    Claim(
        "500,000 steps of batch 256 in about 3 hours on one RTX 3090",
        "the rate of the `article` preset through the loader, extrapolated",
        "lewm bench train --preset article --seconds 60 --csv docs/results/training.csv",
        findings.half_a_million,
    ),
    Claim(
        "one hyper-parameter: the weight of the Gaussian term",
        "weights 0, 0.01, 0.05, 0.1, 0.2 and 0.5 on the same data; mean R2 of observable columns, effective rank",
        "lewm bench lambda --data DIR --csv docs/results/lambda.csv",
        findings.one_parameter,
        "`lewm bench lambda` (15 minutes on one core)",
    ),
    Claim(
        "surprise spikes reliably at what no action explains",
        f"AUROC of at least {findings.AIM} by prediction error for obstacles and large changes of state",
        "lewm surprise RUN --csv docs/results/surprise.csv",
        findings.surprise(_LARGE, findings.AIM),
        "`lewm surprise` of a run",
    ),
    Claim(
        "the KL from the prior spikes at surprise",
        "the same frames by the diagonal KL of the last 8 latents",
        "lewm surprise RUN --csv docs/results/surprise.csv",
        findings.surprise(_LARGE, findings.AIM, score="kl"),
        "`lewm surprise` of a run",
    ),
)

PAPER = (
    Claim(
        "success at goals: Two-Room 87, Reacher 86, Push-T 96, OGBench-Cube 74 %",
        "the reference protocol and a strict one, held-out pairs, at least 200 episodes",
        "lewm plan RUN --goals 200",
        _never,
        _OFFICIAL,
    ),
    Claim(
        "a full plan (300 candidates, 30 iterations) takes 0.98 s on an L40S",
        "`released` shapes, tuned, one environment",
        "lewm bench plan --device cuda --csv docs/results/plan.csv",
        findings.solve_seconds,
    ),
    Claim(
        "velocities cannot be read from one latent (linear r about 0.1 on OGBench-Cube)",
        "linear probes from a single latent; the presets measured here stack three frames",
        "lewm probe RUN --csv docs/results/probes.csv",
        findings.velocity_from_one,
        "`lewm probe` of a run",
    ),
    Claim(
        "a teleported object or body is noticed",
        "AUROC of the frames from the event on, prediction error; the paper has a paired t-test instead",
        "lewm surprise RUN --csv docs/results/surprise.csv",
        findings.surprise(_TELEPORTS, 0.95),
        "`lewm surprise` of a run",
    ),
    Claim(
        "a change of colour is noticed (in the paper less than a teleport, and not significantly on OGBench-Cube)",
        "the same for other colours of everything; 0.95 would be noticing",
        "lewm surprise RUN --csv docs/results/surprise.csv",
        findings.surprise((("colors", ""),), 0.95),
        "`lewm surprise` of a run",
    ),
    Claim(
        "latent paths straighten with no term for it",
        "mean cosine between successive latent velocities on held-out windows",
        "lewm run TASK --csv docs/results",
        findings.straightness,
        "a run trained with this metric",
    ),
    Claim(
        "a weight of 0.01 to 0.2 works, 0.5 does not (Push-T)",
        "as the sweep above, whose regularizer is the KL",
        "lewm bench lambda --data DIR --csv docs/results/lambda.csv",
        findings.one_parameter,
        "`lewm bench lambda` (15 minutes on one core)",
    ),
    Claim(
        "SIGReg is for one GPU only (its authors' code)",
        "loss and gradients of 2 and 3 processes equal those of one, to 1e-9: a test, not a figure",
        "pytest tests/models/test_distributed.py",
        findings.tested,
    ),
)

OURS = (
    Claim(
        "`lewm run dmc/cartpole-swingup --scale small` ends within an hour on two CPU cores",
        "wall clock of all stages",
        "lewm run dmc/cartpole-swingup --csv docs/results",
        findings.an_hour,
        "two CPU cores",
    ),
    Claim(
        "its policy prior, acting alone, beats the policy mixture that collected its data",
        "the same fresh episodes; the whole interval above the other's",
        "lewm run dmc/cartpole-swingup --csv docs/results",
        findings.beats_collection("dmc/cartpole-swingup", "prior"),
        "two CPU cores",
    ),
    Claim(
        "its planning beats the policy mixture that collected its data",
        "the same fresh episodes; the whole interval above the other's",
        "lewm run dmc/cartpole-swingup --csv docs/results",
        findings.beats_collection("dmc/cartpole-swingup", "plan"),
        "two CPU cores",
    ),
    _control("dmc/cartpole-swingup", 870, "`dmc/cartpole-swingup`: return of 870 or more"),
    _control("dmc/reacher-easy", 970, "`dmc/reacher-easy`: return of 970 or more"),
    Claim(
        "a mixture prior serves data of several tasks better than one Gaussian",
        "the same model on data of three tasks of one robot with either target of one statistic; linear R2 by task",
        "lewm bench mixture --data DIR DIR DIR --csv docs/results/mixture.csv",
        findings.mixture_prior,
        "`lewm bench mixture` (15 minutes on one core)",
    ),
    Claim(
        "a recurrent memory beats stacking and a single frame where frames are masked",
        "three models on the same data with blank frames; linear R2 of observable columns, at blank frames and at all",
        "lewm bench memory --data DIR --csv docs/results/memory.csv",
        findings.remembering,
        "`lewm bench memory` (20 minutes on one core)",
    ),
)

GROUPS = (("The article", ARTICLE), ("The paper", PAPER), ("What this project set itself", OURS))
