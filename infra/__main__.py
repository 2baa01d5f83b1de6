"""`python -m infra VERB ...`: the command line where the console script `lewm` is not installed, as in a job."""

from infra.cli import entry

entry()
