"""Whether a run goes well: every log is held against the table of symptoms, worst cause first.

Pure: no torch, no files, no output. `watch.py` feeds it and acts on what it finds.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from thinkgate.checkpoint import HealthFinding, HealthRecord, HealthVerdict
from thinkgate_train.health import optimiser_symptoms as optimiser
from thinkgate_train.health import rollout_symptoms as rollout
from thinkgate_train.health.history import History, RunFacts, Seen

__all__ = ["SYMPTOMS", "HealthWatch", "RunFacts"]

SYMPTOMS: tuple[Callable[[History], Seen | None], ...] = (
    # Ordered: where one cause shows as several symptoms, the most specific is named first.
    optimiser.not_a_number,
    rollout.no_reward,
    rollout.wrong_prefill,
    optimiser.logp_gap,
    optimiser.learning_rate_too_high,
    rollout.forgot_to_stop,
    rollout.all_clipped,
    rollout.many_clipped,
    rollout.reward_hacking,
    rollout.held_out_divergence,
    rollout.length_hacking,
    optimiser.kl_runaway,
    rollout.format_lost,
    rollout.reward_collapse,
    optimiser.entropy_collapse,
    rollout.constant_reward,
    rollout.solved,
    rollout.little_signal,
    rollout.format_never_found,
    optimiser.clip_ratio_high,
    optimiser.grad_norm_explosion,
    optimiser.loss_jump,
    optimiser.overfitting,
    optimiser.no_progress,
    optimiser.preference_stuck,
    optimiser.margin_falling,
    optimiser.both_crash,
    optimiser.reward_model_chance,
    optimiser.value_loss_explosion,
    optimiser.approx_kl_high,
)

CLEARED_AFTER = 30
"""Logs without a symptom until it may be raised again: one at its threshold must not flicker."""


@dataclass(slots=True)
class _Active:
    """A symptom that was seen and has not cleared."""

    raised: bool = False
    stop: bool = False
    quiet: int = 0
    """Logs since it was last seen."""


class HealthWatch:
    """Feed it every log with `update`; ask `record` at the end."""

    def __init__(self, facts: RunFacts) -> None:
        self._run = History(facts)
        self._findings: list[HealthFinding] = []
        self._active: dict[str, _Active] = {}
        self._since: dict[str, int] = {}

    def update(self, step: int, metrics: Mapping[str, float | None]) -> list[HealthFinding]:
        """What this log newly shows. A symptom is raised once; again when it has become bad enough
        to stop for, or after it cleared.

        None and NaN mean "could not be measured". Evaluation logs may come under the same step.
        """
        self._run.add(step, metrics)
        raised: list[HealthFinding] = []
        for check in SYMPTOMS:
            name = check.__name__
            seen = check(self._run)
            if seen is None:
                self._fade(name)
                continue
            known = self._active.setdefault(name, _Active())
            known.quiet = 0
            if not known.raised or (seen.stop and not known.stop):
                raised.append(HealthFinding(symptom=name, step=step, stop=seen.stop, why=seen.why))
                self._since[name] = seen.since
                known.raised, known.stop = True, seen.stop
        self._findings += raised
        return raised

    def since(self, finding: HealthFinding) -> int:
        """The step at which a finding's trouble began, at or before the step it was raised."""
        return min(self._since[finding.symptom], finding.step)

    def standing(self) -> float | None:
        """How well the run does now, to compare its states by; higher is better. None while there
        are too few logs."""
        # The second verifier sees few rollouts of a step: too noisy to choose by.
        checked = [name for name in rollout.HELD_OUT if name.startswith("eval_")]
        for name in (*checked, *rollout.ACCURACY, "reward", "rewards/margins"):
            if now := self._run.get(name).now:
                return now.mean
        loss = self._run.get("eval_loss", "loss").now
        return -loss.mean if loss and not self._run.has("reward") else None

    def expect(self, max_steps: int) -> None:
        """The length of the run, where it follows from the data and is known only at its start."""
        self._run.facts = replace(self._run.facts, max_steps=max_steps)

    def resume(self) -> None:
        """The run goes on after a stop, perhaps with changed keys: what was present must show
        itself anew, in windows filled anew."""
        self._active.clear()
        self._run.forget_recent()

    def record(self, stopped: bool = False) -> HealthRecord:
        """All findings so far. Only who ended the run knows that it was `stopped`."""
        unhealthy = HealthVerdict.WARNED if self._findings else HealthVerdict.HEALTHY
        verdict = HealthVerdict.STOPPED if stopped else unhealthy
        return HealthRecord(verdict=verdict, findings=tuple(self._findings))

    def _fade(self, name: str) -> None:
        if known := self._active.get(name):
            known.quiet += 1
            if known.quiet >= CLEARED_AFTER:
                del self._active[name]
