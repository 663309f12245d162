"""What measures: the benchmarks and experiments behind the figures of the documents; not part of the package."""
