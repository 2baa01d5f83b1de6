"""`lewm bench VERB`: measure, in one run, against a floor and against what others do. A verb lives in `infra.bench`."""

from infra.bench import claims, collect, experts, loader, memory, mixture, plan, sweep, train
from infra.cli.common import Verb

VERBS: dict[str, Verb] = {
    "claims": Verb(claims.Args, claims.run),
    "collect": Verb(collect.Args, collect.run),
    "experts": Verb(experts.Args, experts.run),
    "lambda": Verb(sweep.Args, sweep.run),
    "loader": Verb(loader.Args, loader.run),
    "memory": Verb(memory.Args, memory.run),
    "mixture": Verb(mixture.Args, mixture.run),
    "plan": Verb(plan.Args, plan.run),
    "train": Verb(train.Args, train.run),
}
