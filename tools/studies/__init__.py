"""What measures: the benchmarks and experiments behind the figures of the documents; not part of the package."""

import covpool_plugins  # noqa: F401  Ctrl-C ends in one line from here on, while the studies import what they need
