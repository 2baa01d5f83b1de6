"""`lewm presets`: the model presets with their shapes, parameters and FLOPs."""

from dataclasses import dataclass

from infra.console import print_json, print_table


@dataclass(frozen=True, kw_only=True, slots=True)
class Args:
    """Show the model presets with shapes, parameters and FLOPs."""

    action_size: int = 1
    """Dimensions of the action, which parameters and FLOPs depend on."""
    json: bool = False
    """Print one JSON value on standard output."""


def run(args: Args) -> None:
    if args.action_size < 1:
        raise ValueError(f"--action-size must be at least 1, not {args.action_size}")
    from models.presets import describe

    rows = describe(args.action_size)
    if args.json:
        print_json(rows)
        return
    print_table(
        f"Model presets for {args.action_size}-d actions",
        (
            "preset",
            "image",
            "stack",
            "H",
            "skip",
            "latent",
            "encoder",
            "predictor",
            "regularizer",
            "parameters",
            "encode",
            "predict",
        ),
        [
            (
                row.preset,
                f"{row.image} px",
                str(row.stack),
                str(row.history),
                str(row.frame_skip),
                str(row.latent_dim),
                row.encoder,
                row.predictor,
                row.regularizer,
                f"{row.parameters:,}",
                f"{row.encode_mflop:,.1f} MFLOP",
                f"{row.predict_mflop:,.1f} MFLOP",
            )
            for row in rows
        ],
    )
