"""The limits of the machine, for the other benchmarks: python -m benchmarks.machine_side THREADS."""

import sys

from benchmarks.harness import answer_requests


def main():
    from tinygrad2.system.threads import plan_threads

    plan_threads(int(sys.argv[1]))
    import numpy as np

    from tinygrad2.system.bandwidth import bandwidth
    from tinygrad2.system.gemm_peak import gemm_peak

    def measure(read=False):
        if read:
            from benchmarks.reading import reading

            return dict(reading=reading())
        return dict(gemm=gemm_peak(np, seconds=0.5), bandwidth=bandwidth())

    answer_requests(measure)


if __name__ == "__main__":
    main()
