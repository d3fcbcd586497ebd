"""The roofline of the ladder: what each rung reaches, under what memory and arithmetic allow. By matplotlib."""

from benchmarks.harness import load_average
from tinygrad2.system.processor import cpu_name


def write_roofline(rows, limits, path):
    """A PNG: FLOP per byte loaded from the L1 cache against GFLOP/s, both logarithmic, with the measured limits.

    rows, limits: those of ladder.measure. A point lies below the slope where its loads limit it and below the flat line
    of its instruction where arithmetic does.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(8, 5), layout="constrained")
    left, right = 0.1, 40.0
    for name, label in (("L1", "L1 cache"), ("memory", "memory")):
        speed = limits[name] / 1e9
        axis.plot([left, right], [left * speed, right * speed], color="#888888", linewidth=1)
        axis.annotate(f"{label}, {speed:.0f} GB/s", (left * 1.1, left * 1.1 * speed), fontsize=8, color="#555555",
                      textcoords="offset points", xytext=(0, 6))  # fmt: skip
    peaks = {name.split()[0]: value / 1e9 for name, value in limits.items() if name.endswith("peak")}
    heights: list[float] = []
    for name, peak in sorted(peaks.items(), key=lambda item: item[1]):
        axis.axhline(peak, color="#888888", linewidth=1, linestyle=(0, (4, 3)))
        beside = any(peak < 1.3 * other for other in heights)     # of another label
        place = dict(xy=(left * 1.1, peak), ha="left") if beside else dict(xy=(right, peak), ha="right")
        axis.annotate(f"peak of {name}, {peak:.0f} GFLOP/s", fontsize=8, color="#555555", xytext=(0, 3),
                      textcoords="offset points", **place)  # fmt: skip
        heights.append(peak)
    lowest = min(row["gflops"] for row in rows)
    for row in rows:
        axis.plot(row["intensity"], row["gflops"], "o", color="#1f5fa8")
        axis.annotate(row["rung"], (row["intensity"], row["gflops"]), fontsize=9, textcoords="offset points",
                      xytext=(7, -11))  # fmt: skip
    axis.set(xscale="log", yscale="log", xlim=(left, right), ylim=(lowest / 2, 2.5 * max(peaks.values())),
             xlabel="FLOP per byte loaded from (or stored to) the L1 cache", ylabel="GFLOP/s, one thread")  # fmt: skip
    axis.set_title(f"{cpu_name()}; load {load_average()}", fontsize=9)
    figure.savefig(path, dpi=110, format="png")
    pyplot.close(figure)
