"""Reinforcement learning with actors and a learner: actors play, the learner trains.

    python examples/rollouts.py --actors 2
    python examples/rollouts.py --hosts node1,node2 --actors 4

Each round the learner sends its weights to all actors, as tensors. The actors balance poles with
them and send what they saw back. The learner improves the weights with REINFORCE (Williams, 1992).
"""

import argparse
import contextlib
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from miniray import Channel, Cluster, NodeConfig, Worker
from miniray.errors import MiniRayError

STEPS_MAX = 200  # an episode's best score: one point for each step that the pole stays up
DISCOUNT = 0.97
REPLY_S = 60.0


def make_policy() -> nn.Sequential:
    """Return a network from a pole's state, float32 (..., 4), to the logits of left and right."""
    return nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 2))


def act(channel: Channel) -> None:
    """Play some episodes for every message, with the weights that came in it."""
    torch.set_num_threads(1)  # each actor has a core to itself at best
    policy = make_policy()
    for message in channel:
        policy.load_state_dict(message["weights"])
        generator = torch.Generator().manual_seed(message["seed"])
        with torch.no_grad():
            channel.send(play(policy, message["episodes"], generator))


def play(policy: nn.Module, episodes: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Play many episodes side by side until every pole has fallen.

    Returns "states", float32 (time, episodes, 4), "actions", int64, and "alive", bool, both
    (time, episodes): whether the pole still stood when that action was taken.
    """
    state = (torch.rand(episodes, 4, generator=generator) - 0.5) / 10
    alive = torch.ones(episodes, dtype=torch.bool)
    states, actions, alives = [], [], []
    while alive.any() and len(states) < STEPS_MAX:
        chances = policy(state).softmax(-1)
        action = torch.multinomial(chances, 1, generator=generator)[:, 0]
        states.append(state)
        actions.append(action)
        alives.append(alive)
        state = push(state, action)
        position, angle = state[:, 0], state[:, 2]
        alive = alive & (position.abs() < 2.4) & (angle.abs() < 0.21)
    return {
        "states": torch.stack(states),
        "actions": torch.stack(actions),
        "alive": torch.stack(alives),
    }


def push(state: Tensor, action: Tensor) -> Tensor:
    """Push each cart left or right for 20 ms; state is (position, speed, angle, turning speed).

    The equations are those of Barto, Sutton and Anderson (1983), without friction.
    """
    gravity, cart_kg, pole_kg, half_pole_m, force_n, seconds = 9.8, 1.0, 0.1, 0.5, 10.0, 0.02
    position, speed, angle, turning = state.unbind(1)
    force = force_n * (2 * action - 1)
    total_kg = cart_kg + pole_kg
    drive = (force + pole_kg * half_pole_m * turning**2 * angle.sin()) / total_kg
    inertia = half_pole_m * (4 / 3 - pole_kg * angle.cos() ** 2 / total_kg)
    turning_change = (gravity * angle.sin() - angle.cos() * drive) / inertia
    speed_change = drive - pole_kg * half_pole_m * turning_change * angle.cos() / total_kg
    return torch.stack(
        [
            position + seconds * speed,
            speed + seconds * speed_change,
            angle + seconds * turning,
            turning + seconds * turning_change,
        ],
        dim=1,
    )


def reinforce(policy: nn.Module, rollouts: Sequence[dict[str, Tensor]]) -> Tensor:
    """Return the loss whose gradient makes actions likelier that were followed by long lives."""
    advantages, chances = [], []
    for rollout in rollouts:
        alive = rollout["alive"]
        following = torch.zeros(alive.shape[1])
        returns = []
        for reward in alive.float().flip(0):
            following = reward + DISCOUNT * following
            returns.append(following)
        log_chances = policy(rollout["states"]).log_softmax(-1)
        taken = log_chances.gather(-1, rollout["actions"][..., None])[..., 0]
        advantages.append(torch.stack(returns).flip(0)[alive])
        chances.append(taken[alive])
    advantage = torch.cat(advantages)
    advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-6)
    return -(advantage * torch.cat(chances)).mean()


def learn(actors: Sequence[Channel], rounds: int, episodes: int, seed: int) -> list[float]:
    """Train for some rounds; return each round's mean score."""
    torch.manual_seed(seed)
    policy = make_policy()
    optimizer = torch.optim.Adam(policy.parameters(), lr=2e-2)
    scores = []
    for number in range(rounds):
        for index, actor in enumerate(actors):
            actor.send(
                {
                    "weights": dict(policy.state_dict()),
                    "episodes": episodes,
                    "seed": (seed * rounds + number) * len(actors) + index,
                }
            )
        rollouts = [actor.recv(REPLY_S) for actor in actors]
        loss = reinforce(policy, rollouts)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        lengths = torch.cat([rollout["alive"].sum(0) for rollout in rollouts])
        scores.append(lengths.float().mean().item())
        print(f"round {number + 1:3}/{rounds}  mean score {scores[-1]:6.1f}", flush=True)
    return scores


def main() -> int:
    """Start the actors and learn."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--actors", type=int, default=2, metavar="N", help="here, or per host")
    parser.add_argument("--hosts", metavar="A,B", help="where the actors run, over ssh")
    parser.add_argument("--rounds", type=int, default=30, metavar="N")
    parser.add_argument("--episodes", type=int, default=16, metavar="N", help="per actor and round")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    try:
        with contextlib.ExitStack() as stack:
            actors: list[Any]
            if options.hosts:
                nodes = [NodeConfig(host, options.actors) for host in options.hosts.split(",")]
                actors = stack.enter_context(Cluster(nodes)).start("rollouts.act")
            else:
                actors = [stack.enter_context(Worker(act)) for _ in range(options.actors)]
            scores = learn(actors, options.rounds, options.episodes, options.seed)
    except (MiniRayError, OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; nothing was left running", file=sys.stderr)
        return 130
    print(f"mean score: {scores[0]:.1f} at first, {scores[-1]:.1f} at last, of {STEPS_MAX}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
