"""Experts by environment: scripted where a script is known, learned from state elsewhere. They see the simulator."""

from collectors.envs.base import EnvSpec
from collectors.policies import Policy


def make_expert(spec: EnvSpec) -> Policy:
    """The expert of an environment; ValueError when there is none."""
    name = spec.name
    if name.startswith("metaworld/"):
        from collectors.experts.metaworld import MetaWorldExpert

        return MetaWorldExpert(name)
    if name.startswith("dmc/cartpole-") and spec.action_size == 1 and len(spec.columns) == 4:
        from collectors.experts.cartpole import CartpoleExpert

        return CartpoleExpert()
    if name.startswith("dmc/reacher-"):
        from collectors.experts.reacher import ReacherExpert

        return ReacherExpert()
    from collectors.experts import learned

    if name in learned.available():
        return learned.LearnedExpert(name)
    raise ValueError(
        f"there is no expert for {name}: use --policy oracle, which plans on the simulator and is slow, random or noise"
    )
