"""``qaf search``: the best plan under budgets, refined by true divergence on calibration images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from qaf_core.data.models.catalogue import load_inventory
from qaf_core.errors import PlanError
from qaf_core.factorization.effort import effort_options
from qaf_core.factorization.options import Method
from qaf_core.network.plan.cost import layer_cost, original_cost, plan_cost
from qaf_core.network.plan.file_size import CONTAINER_BYTES_FIXED
from qaf_core.network.plan.layer_info import LayerInfo
from qaf_core.network.plan.types import LayerPlan, Plan
from qaf_core.runs.jobs.plans.knowledge import Explored, Knowledge, find_knowledge, load_explored
from qaf_core.runs.jobs.plans.sweep import run_request
from qaf_core.runs.jobs.plans.uniform import best_uniform, check_uniform
from qaf_core.runs.store.request import FOUND, source_of
from qaf_core.search.budget.allocate import HARM, Allocation, Choice, Limit, allocate
from qaf_core.search.budget.budgets import Budget, read_budgets, read_locks
from qaf_core.search.budget.predict import Observation, Predictor
from qaf_core.search.sensitivity.settings import Setting, harm_together
from qaf_core.text.said import say

if TYPE_CHECKING:
    from pathlib import Path

    from qaf_core.pipeline.events import Progress
    from qaf_core.runs.store.record import JobRecord
    from qaf_core.runs.store.request import SearchRequest
    from qaf_core.runs.store.store import Store

MOST_TRIALS = 4  # compressed networks whose divergence is measured
UNIFORM = (Method.JOINT, Method.PAPER, Method.SEQUENTIAL)
REFINING_SHARE = 0.5  # of the time limit, for weights put in place together


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """A plan under budgets.

    Attributes:
        plan: The plan.
        predicted: What is expected of it, as ``Prediction.to_dict``.
        binding: The budget that holds it back most, or None.
        price: What a hundredth more of that budget is worth, in words; empty where nothing binds.
        extra: What else is told, ready for JSON.
    """

    plan: Plan
    predicted: dict[str, Any]
    binding: str | None
    price: str
    extra: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        return {
            "plan": self.plan.to_dict(),
            "predicted": self.predicted,
            "binding": self.binding,
            "price": self.price,
            **self.extra,
        }


def search_plan(request: SearchRequest, store: Store, progress: Progress) -> SearchResult:
    """The plan of least expected harm under the budgets, or the smallest within a drop.

    Args:
        request: What is asked for.
        store: Its workspace keeps what is measured; its runs teach the prediction.
        progress: Told how far it is, and asked whether to stop.

    Raises:
        QafError: If the input cannot be used, or nothing meets the budgets.
        RunCancelled: If stopped; what was measured and solved is kept.
    """
    budgets = read_budgets(request.budgets)
    # What makes no sense is told at once, and not after minutes of measuring.
    if request.method in UNIFORM:
        check_uniform(request, budgets)
    read_locks(request.locks, load_inventory(source_of(request, store.workspace)))
    began = progress.elapsed_seconds
    knowledge = find_knowledge(request.explored, store.workspace, progress)
    known_after = progress.elapsed_seconds - began
    search = _Search.of(
        request, budgets, knowledge, knowledge.predictor(store, request), store.workspace, progress
    )
    progress.step("selecting", "Choosing a setting for every layer")
    if request.method in UNIFORM:
        plan = best_uniform(request, knowledge.inventory, budgets, search.predictor)
        plan = replace(plan, options=effort_options(request.effort))
        return _result(search, plan, None, [], progress.elapsed_seconds - began - known_after)
    allocation = search.choose(search.choices)
    trials: list[_Trial] = []
    if request.time_limit > 0 and request.method == FOUND:
        explored = load_explored(request.explored, store.workspace, progress)
        allocation, trials = _refined(search, explored, allocation, store.workspace, progress)
    seconds = progress.elapsed_seconds - began - known_after
    return _result(search, search.plan_of(allocation), allocation, trials, seconds)


def carry_out(store: Store, job: JobRecord, progress: Progress) -> dict[str, Any]:
    """The job ``search``: finds the plan; a run of it is a job of its own."""
    request = job.request
    result = search_plan(request, store, progress).to_dict()
    if request.then_run:
        result["run"] = store.create_run(run_request(request, result["plan"]), follows=job)
    return result


def _result(
    search: _Search, plan: Plan, allocation: Allocation | None, trials: Sequence[_Trial], seconds: float
) -> SearchResult:
    inventory = search.knowledge.inventory
    extra = {
        "budget": list(search.request.budgets),
        "cost": plan_cost(inventory, plan).to_dict(),
        "baseline_cost": original_cost(inventory).to_dict(),
        "trials": [{"divergence": trial.divergence, "size_bytes": trial.size_bytes} for trial in trials],
        "seconds": {"sensitivity": search.knowledge.sensitivity.seconds, "search": seconds},
    }
    binding = None if allocation is None else allocation.binding
    return SearchResult(
        plan=plan,
        predicted=search.predictor.predict(plan).to_dict(),
        extra=extra,
        price="" if allocation is None else search.price_text(allocation),
        binding="drop" if binding == HARM else binding,
    )


@dataclass(frozen=True, kw_only=True)
class _Trial:
    """A plan whose compressed network's divergence was measured."""

    allocation: Allocation
    plan: Plan
    divergence: float
    size_bytes: int


@dataclass(kw_only=True)
class _Search:
    """Choices of all layers, and the limits on them."""

    request: SearchRequest
    knowledge: Knowledge
    predictor: Predictor
    choices: Mapping[str, Sequence[Choice]]
    limits: tuple[Limit, ...]
    drop: float | None

    @classmethod
    def of(
        cls,
        request: SearchRequest,
        budgets: Sequence[Budget],
        knowledge: Knowledge,
        predictor: Predictor,
        workspace: Path,
        progress: Progress,
    ) -> _Search:
        inventory, before = knowledge.inventory, original_cost(knowledge.inventory)
        locks = read_locks(request.locks, inventory)
        by_kind = {budget.kind: budget for budget in budgets}
        latencies: Callable[[Setting], float] | None = None
        originals = {"size": float(before.size_bytes), "bops": float(before.bops)}
        if "latency" in by_kind:
            from qaf_core.runs.jobs.plans.latency import layer_latencies

            latencies, originals["latency"] = layer_latencies(inventory, workspace, progress)
        infos = {info.name: info for info in inventory if info.planned}
        choices: dict[str, Sequence[Choice]] = {}
        for name, info in infos.items():
            settings = _settings(knowledge, info, request, locks.get(name))
            choices[name] = [Choice(setting=row, costs=_costs(row, by_kind, latencies)) for row in settings]
        others = [layer_cost(info, None, request.activation_bits) for info in inventory if not info.planned]
        fixed = {
            "size": CONTAINER_BYTES_FIXED + sum(cost.size_bytes for cost in others),
            "bops": sum(cost.bops for cost in others),
        }
        limits = tuple(
            Limit(
                name=budget.kind,
                limit=budget.limit(originals[budget.kind]),
                fixed=fixed.get(budget.kind, 0.0),
                text=budget.text,
            )
            for budget in budgets
            if budget.kind != "drop"
        )
        drop = by_kind["drop"].number if "drop" in by_kind else None
        return cls(
            request=request,
            knowledge=knowledge,
            predictor=predictor,
            choices=choices,
            limits=limits,
            drop=drop,
        )

    @property
    def minimise(self) -> str:
        """What is made small."""
        return HARM if self.drop is None else "size"

    def choose(self, choices: Mapping[str, Sequence[Choice]]) -> Allocation:
        """The best choice under the limits."""
        limits = list(self.limits)
        if self.drop is not None:
            allowed = self.predictor.harm_at(self.drop)
            text = next(text for text in self.request.budgets if text.startswith("drop"))
            limits.append(
                Limit(
                    name=HARM,
                    limit=allowed,
                    fixed=self.knowledge.sensitivity.floor,
                    text=text,
                    to_text=lambda harm: f"drop={100 * self.predictor.drop_at(harm):.2g}pp",
                )
            )
        return allocate(choices, limits, minimise=self.minimise)

    def dense(self) -> Allocation | None:
        """The best choice without factorized layers; None if that meets no limit."""
        plain = self._plain_choices()
        if not all(plain.values()):  # a lock
            return None
        try:
            return self.choose(plain)
        except PlanError:
            return None

    def _plain_choices(self) -> dict[str, list[Choice]]:
        return {
            name: [row for row in rows if row.setting.row.rank is None] for name, rows in self.choices.items()
        }

    def around(self, best: Allocation) -> tuple[Mapping[str, Sequence[Choice]], Allocation]:
        """What to look at around the best choice so far, and where to begin: where that has no factorized
        layers, only such choices; under a drop chosen anew, as what is known of it has grown.
        """
        plain = all(setting.row.rank is None for setting in best.settings.values())
        choices = self._plain_choices() if plain else self.choices
        return choices, best if self.drop is None else self.choose(choices)

    def price_text(self, allocation: Allocation) -> str:
        """What a hundredth more of the limit that binds would be worth."""
        if allocation.binding is None:
            return ""
        if self.minimise != HARM:
            return f"1 % more would save about {allocation.price / 1e3:.2g} kB"
        now = allocation.harm + self.knowledge.sensitivity.floor
        gain = self.predictor.drop_at(now) - self.predictor.drop_at(max(now - allocation.price, 0.0))
        return f"1 % more would win about {100 * gain:.2g} points"

    def plan_of(self, allocation: Allocation) -> Plan:
        """The plan of an allocation."""
        return Plan(
            model=self.request.model,
            layers=tuple(allocation.settings[name].row for name in self.choices),
            activation_bits=self.request.activation_bits,
            seed=self.request.seed,
            options=effort_options(self.request.effort),
        )


def _settings(
    knowledge: Knowledge, info: LayerInfo, request: SearchRequest, lock: LayerPlan | None
) -> list[Setting]:
    """What a layer may become."""
    known = knowledge.sensitivity.settings.get(info.name, ())
    if lock is None:
        return [row for row in known if request.method != Method.DENSE or row.row.rank is None]
    cost = layer_cost(info, lock, request.activation_bits)
    harm = knowledge.sensitivity.harm_of(lock) or 0.0
    return [Setting(row=lock, harm=harm, size_bytes=cost.size_bytes, bops=cost.bops)]


def _costs(
    row: Setting, by_kind: Mapping[str, Budget], latencies: Callable[[Setting], float] | None
) -> dict[str, float]:
    costs = {"size": float(row.size_bytes)}
    if "bops" in by_kind:
        costs["bops"] = float(row.bops)
    if latencies is not None:
        costs["latency"] = latencies(row)
    return costs


def _refined(
    search: _Search, explored: Explored, first: Allocation, workspace: Path, progress: Progress
) -> tuple[Allocation, list[_Trial]]:
    """The best of the first choice and those found around it, by the divergence of compressed networks."""
    from qaf_core.search.budget.improve import improve
    from qaf_core.search.sensitivity.measure import MeasuredNetwork

    limit = search.request.time_limit
    until = progress.elapsed_seconds + limit
    temperature = search.knowledge.sensitivity.temperature
    network = MeasuredNetwork.of(
        explored.model,
        explored.inventory,
        explored.calibration,
        search.request.seed,
        progress,
        temperature=temperature,
        activation_bits=search.request.activation_bits,
    )
    judge = _judge(search, explored, workspace, progress)
    trials: list[_Trial] = []
    for allocation in (first, search.dense()):  # what is found shall not be worse than plain rounding
        if allocation is None or (trials and progress.elapsed_seconds > until):
            continue
        if all(search.plan_of(allocation) != trial.plan for trial in trials):
            trials.append(judge(allocation))
            search.predictor = _learn_from(search.predictor, trials[-1])
    while len(trials) < MOST_TRIALS and progress.elapsed_seconds < until:
        choices, base = search.around(_best(search, trials).allocation)
        steps = improve(
            network,
            choices,
            base,
            search.plan_of,
            search.choose,
            progress,
            seconds=REFINING_SHARE * (until - progress.elapsed_seconds),
        )
        tried = [trial.plan for trial in trials]
        fresh = [step for step in steps if step.plan not in tried][: 1 if search.drop is not None else 2]
        for step in fresh:
            if progress.elapsed_seconds > until:
                break
            harms = {name: _choice_of(search, name, row) for name, row in step.allocation.settings.items()}
            total = harm_together(row.harm for row in harms.values())
            trials.append(judge(replace(step.allocation, settings=harms, harm=total)))
            search.predictor = _learn_from(search.predictor, trials[-1])
        if search.drop is None or not fresh:
            break
    return _best(search, trials).allocation, trials


def _choice_of(search: _Search, name: str, setting: Setting) -> Setting:
    """A setting with the harm that was first expected of it."""
    return next(row.setting for row in search.choices[name] if row.setting.row == setting.row)


def _judge(
    search: _Search, explored: Explored, workspace: Path, progress: Progress
) -> Callable[[Allocation], _Trial]:
    import torch

    from qaf_core.pipeline.compress.compress import compress_network
    from qaf_core.pipeline.compress.result import read_options
    from qaf_core.pipeline.compress.solve_cache import SolveCache
    from qaf_core.pipeline.divergence import output_divergence
    from qaf_core.search.sensitivity.measure import fitted_and_judging

    cache = SolveCache(workspace / "cache" / "layers")
    temperature = search.knowledge.sensitivity.temperature
    fitted, judging = fitted_and_judging(explored.calibration)

    def judge(allocation: Allocation) -> _Trial:
        plan = search.plan_of(allocation)
        progress.step("refining", "Measuring the divergence of the compressed network")
        compression = compress_network(
            explored.model,
            plan,
            explored.inventory,
            calibration=fitted,
            options=read_options(plan),
            progress=progress.quiet(),
            cache=cache,
        )
        progress.check()
        with torch.inference_mode():
            parts = torch.split(judging, 32)
            divergences = [
                output_divergence(explored.model(part), compression.model(part), temperature) * len(part)
                for part in parts
            ]
        cost = plan_cost(explored.inventory, plan)
        return _Trial(
            allocation=allocation,
            plan=plan,
            divergence=sum(divergences) / len(judging),
            size_bytes=cost.size_bytes,
        )

    return judge


def _learn_from(predictor: Predictor, trial: _Trial) -> Predictor:
    return predictor.with_observation(
        Observation(harm=predictor.harm(trial.plan), divergence=trial.divergence)
    )


def _best(search: _Search, trials: Sequence[_Trial]) -> _Trial:
    """Of those within the drop the smallest, else the one that diverges least; the best also when missed."""
    if search.drop is not None:
        within = [trial for trial in trials if search.predictor.loss_at(trial.divergence) <= search.drop]
        if within:
            return min(within, key=lambda trial: trial.size_bytes)
    return min(trials, key=lambda trial: trial.divergence)


def predict_plan(knowledge: Knowledge, predictor: Predictor, plan: Plan) -> dict[str, Any]:
    """The object that ``qaf predict --json`` prints."""
    if plan.activation_bits != knowledge.sensitivity.activation_bits:
        raise PlanError(
            "the sensitivity is that of other activations",
            got=say("{bits} bits", bits=plan.activation_bits),
            expected=say("{bits} bits", bits=knowledge.sensitivity.activation_bits),
        )
    return {
        "model": plan.model,
        "predicted": predictor.predict(plan).to_dict(),
        "baseline": dict(knowledge.baseline),
        "cost": plan_cost(knowledge.inventory, plan).to_dict(),
        "baseline_cost": original_cost(knowledge.inventory).to_dict(),
    }
