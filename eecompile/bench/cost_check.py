"""How far the cost model is from what was measured: its prediction of every pass of a bundle's profile."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from eecompile.bench.cost import PassCosts, full_depth_seconds
from eecompile.bench.cost_model import TYPICAL_LENGTH, predict_costs
from eecompile.bench.device_costs import setting_from_manifest
from eecompile.bench.machine import measure_rates
from eecompile.bench.rates import Rates
from eecompile.bench.work_bundle import works_from_bundle
from eecompile.bundle.manifest import Profile
from eecompile.bundle.read import BundleFiles
from eecompile.errors import UsageError
from eecompile.target import load_target

HERE = "cpu"  # the target that profiles are measured on


@dataclass(frozen=True)
class GraphError:
    """One graph over the passes that were measured of it: the median of |predicted / measured - 1|, that of one row
    with its sign, and the seconds of one row at a typical length."""

    graph: str
    passes: int
    error: float
    one_row: float
    measured: float
    predicted: float


@dataclass(frozen=True)
class CostCheck:
    """token_error: of a token at full depth, signed. error: the median over all passes."""

    device: str
    rates: Rates
    graphs: list[GraphError]
    error: float
    token_measured: float
    token_predicted: float

    @property
    def token_error(self) -> float:
        """Predicted over measured, less one."""
        return self.token_predicted / self.token_measured - 1

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return {**asdict(self), "token_error": self.token_error}


def check_costs(files: BundleFiles, *, rates: Rates | None = None) -> CostCheck:
    """Hold the model's prediction against the bundle's profile. rates: the machine's, measured now where not given, on
    the profile's number of threads; so the profile has to be this machine's.

    Raises UsageError where the bundle has no profile.
    """
    manifest = files.manifest
    if not files.profiles:
        mend = "measure it first: `eecompile profile BUNDLE`"
        raise UsageError("the bundle has no profile to compare with", where=str(files.path), mend=mend)
    profile = files.profiles[0]
    here, works = load_target(HERE), works_from_bundle(manifest, files.path)
    if rates is None:
        weights = sum(work.weights for work in works.values())
        width, threads = manifest.model.hidden, profile.threads
        rates = measure_rates(width, manifest.precision, weights, threads=threads, launch=here.launch)
    predicted = predict_costs(works, rates, setting_from_manifest(manifest, here))
    measured = PassCosts.from_profile(profile)
    length = min(TYPICAL_LENGTH, manifest.model.context)
    errors = _errors(profile, predicted)
    graphs = [
        GraphError(
            graph=name,
            passes=len(found),
            error=median(map(abs, found)),
            one_row=predicted.seconds(name, 1, length) / measured.seconds(name, 1, length) - 1,
            measured=measured.seconds(name, 1, length),
            predicted=predicted.seconds(name, 1, length),
        )
        for name, found in errors.items()
    ]
    return CostCheck(
        device=profile.device,
        rates=rates,
        graphs=graphs,
        error=median(abs(e) for found in errors.values() for e in found),
        token_measured=full_depth_seconds(manifest, measured, length),
        token_predicted=full_depth_seconds(manifest, predicted, length),
    )


def _errors(profile: Profile, predicted: PassCosts) -> Mapping[str, list[float]]:
    """Predicted over measured, less one, of every pass, by graph."""
    found: defaultdict[str, list[float]] = defaultdict(list)
    for p in profile.passes:
        if p.seconds > 0:
            found[p.graph].append(predicted.seconds(p.graph, p.rows, p.length) / p.seconds - 1)
    return found
