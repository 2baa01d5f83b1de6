"""`lewm bench VERB`: measure, in one run, against a floor and against what others do. A verb lives in `infra.bench`."""

from infra.bench import collect, experts, loader, plan, train
from infra.cli.common import Verb

VERBS: dict[str, Verb] = {
    "collect": Verb(collect.Args, collect.run),
    "experts": Verb(experts.Args, experts.run),
    "loader": Verb(loader.Args, loader.run),
    "plan": Verb(plan.Args, plan.run),
    "train": Verb(train.Args, train.run),
}
