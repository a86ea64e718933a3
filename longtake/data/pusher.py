"""A library of a robot arm that pushes a puck about a table: the Pusher of Gymnasium, in the MuJoCo simulator.

A stand-in for the recordings of robots that action-conditioned models are trained on (BAIR robot pushing: Ebert et
al., CoRL 2017). Every shot is one unbroken run at 10 frames a second, seen from straight above, without shadows;
with it go the places of the arm's tip and of the puck in the picture. There is no goal to reach: the arm is drawn
through the puck again and again, or to a random place.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from longtake.data import video
from longtake.data.library import Library, LibraryWriter, Row, shots_for_test
from longtake.errors import UserError

FPS = 10
REPEAT = 2
"""Steps of the simulated controller (20 a second) a frame."""
PLANNED = 256
"""Frames of a shot, about."""
STATE_NAMES = ("x", "y", "puck_x", "puck_y")
CENTRE, DISTANCE = (0.45, -0.15, -0.3), 1.5
"""What the camera looks at, and from how far above, in metres."""
REACH = ((0.25, 0.85), (-0.4, 0.3))
"""Where on the table (x, y) the puck stays and the arm is sent, in metres."""
STIFFNESS, DAMPING = 200.0, 15.0
"""Of the spring (N/m) that draws the tip to where it is sent, and of its motion (N s/m)."""
PUSHES = 0.7
"""Share of the arm's ways that lead through the puck."""
WAYS = (6, 20)
"""Frames of a way, at least and below."""
WARM_UP = 40
"""Frames at most, before a shot begins: the arm always starts in the same pose."""


def build(
    output: str | Path,
    minutes: float,
    size: int,
    seed: int,
    games: Iterable[str] | None,
    test: float,
    workers: int,
    progress: Callable[[int, int, str], None] | None,
) -> Library:
    """Record the library; the arguments are those of `samples.sample`. One process does it, whatever `workers`."""
    if games is not None:
        raise UserError("the pusher has no games; leave --games out", 2)
    arm = Arm(size)
    frames = max(2, round(minutes * 60 * FPS))
    count = max(2, round(frames / PLANNED))
    lengths = [len(part) for part in np.array_split(np.arange(frames), count)]
    tests = shots_for_test(count, test, seed)
    with LibraryWriter(output, (size, size), float(FPS), state_names=STATE_NAMES, split_seed=seed) as writer:
        for number, length in enumerate(lengths):
            id = f"pusher-{number:03d}"
            shown, states = arm.shot(length, (seed, number))
            files = {kind: writer.media(kind, id) for kind in ("video", "states")}
            with video.VideoWriter(files["video"], FPS, crf=12, gop=12, pixel_format="yuv444p") as out:
                out.write(shown)
            np.save(files["states"], states)
            writer.add(
                Row(
                    id=id,
                    file=writer.relative(files["video"]),
                    frames=length,
                    seconds=length / FPS,
                    split="test" if number in tests else "train",
                    source=f"Gymnasium Pusher-v5, seed {seed}, shot {number}",
                    states=writer.relative(files["states"]),
                )
            )
            if progress is not None:
                progress(sum(lengths[: number + 1]), frames, "pusher")
    return Library(output)


class Arm:
    """The simulated arm, its table and the camera above it.

    Args:
        size: height and width of a picture in pixels.

    Raises:
        UserError: Gymnasium or MuJoCo is missing, or nothing can be drawn without a screen.
    """

    def __init__(self, size: int):
        os.environ.setdefault("MUJOCO_GL", "egl")
        try:
            import gymnasium
            import mujoco
        except ImportError:
            message = "the pusher needs Gymnasium with MuJoCo; install it with: pip install 'gymnasium[mujoco]'"
            raise UserError(message) from None
        except Exception as error:  # whatever the OpenGL of this machine lacks
            raise UserError(_undrawable(error)) from None
        self.mujoco: Any = mujoco
        self.env: Any = gymnasium.make("Pusher-v5").unwrapped
        self.model, self.data = self.env.model, self.env.data
        self.tip, self.puck = (self.model.body(name).id for name in ("tips_arm", "object"))
        self._dress()
        try:
            self.renderer: Any = mujoco.Renderer(self.model, size, size)
        except Exception as error:
            raise UserError(_undrawable(error)) from None
        self.camera: Any = self.mujoco.MjvCamera()
        self.camera.lookat[:], self.camera.distance = CENTRE, DISTANCE
        self.camera.azimuth, self.camera.elevation = 90, -90

    def _dress(self) -> None:
        """Colours; a puck that is moved by every part of the arm, glides, and stays on the table."""
        model, goal = self.model, self.model.body("goal").id
        owner = model.geom_bodyid
        puck, arm = owner == self.puck, (owner != self.puck) & (owner != goal) & (owner != 0)
        model.geom_rgba[owner == 0] = (0.55, 0.5, 0.4, 1)
        model.geom_rgba[arm] = (0.2, 0.35, 0.8, 1)
        model.geom_rgba[owner == self.tip] = (0.95, 0.85, 0.1, 1)
        model.geom_rgba[puck] = (0.9, 0.2, 0.1, 1)
        model.geom_rgba[owner == goal, 3] = 0
        model.vis.headlight.ambient[:], model.vis.headlight.diffuse[:] = 0.4, 0.6
        model.light_castshadow[:] = 0
        model.geom_contype[:], model.geom_conaffinity[:] = arm, puck
        slides = [model.joint(name) for name in ("obj_slidex", "obj_slidey")]
        model.body_mass[self.puck] = 0.05
        for axis, joint in enumerate(slides):
            model.dof_damping[joint.dofadr] = 0.005
            model.jnt_limited[joint.id] = 1
            model.jnt_range[joint.id] = np.subtract(REACH[axis], model.body_pos[self.puck][axis])
        self.slides = [int(joint.qposadr[0]) for joint in slides]

    def shot(self, frames: int, seed: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """Frames uint8 (T, size, size, 3) and states float32 (T, 4) in [0, 1], see `STATE_NAMES`; places from the
        picture's upper left corner."""
        rng = np.random.default_rng(seed)
        self.env.reset(seed=int(rng.integers(1 << 31)))
        for address, reach, home in zip(self.slides, REACH, self.model.body_pos[self.puck], strict=False):
            self.data.qpos[address] = rng.uniform(*reach) - home
        self.mujoco.mj_forward(self.model, self.data)
        shown, states, left, goal = [], [], 0, np.zeros(3)
        for frame in range(-int(rng.integers(WARM_UP)), frames):
            if left == 0:
                goal, left = self._goal(rng), int(rng.integers(*WAYS))
            left -= 1
            for _ in range(REPEAT):
                self.env.step(self._torques(goal))
            if frame < 0:
                continue
            self.renderer.update_scene(self.data, self.camera)
            shown.append(self.renderer.render())
            states.append(np.concatenate([self._place(self.tip), self._place(self.puck)]))
        return np.stack(shown), np.stack(states).astype(np.float32).clip(0, 1)

    def _goal(self, rng: np.random.Generator) -> np.ndarray:
        """Where the tip is sent: beyond the puck, or anywhere."""
        tip, puck = self.data.xpos[self.tip], self.data.xpos[self.puck]
        if rng.random() < PUSHES:
            way = puck[:2] - tip[:2]
            place = puck[:2] + 0.25 * way / (np.linalg.norm(way) + 1e-6)
        else:
            place = np.array([rng.uniform(*reach) for reach in REACH])
        low, high = np.transpose(REACH)
        return np.array([*place.clip(low, high), puck[2]])

    def _torques(self, goal: np.ndarray) -> np.ndarray:
        """Of the arm's seven joints, at most what its motors can: a damped spring from the tip to its goal."""
        jacobian = np.zeros((3, self.model.nv))
        self.mujoco.mj_jacBody(self.model, self.data, jacobian, None, self.tip)
        force = STIFFNESS * (goal - self.data.xpos[self.tip]) - DAMPING * (jacobian @ self.data.qvel)
        low, high = self.model.actuator_ctrlrange.T
        return (jacobian.T @ force)[: len(low)].clip(low, high)

    def _place(self, body: int) -> np.ndarray:
        """(x, y) in the picture, 0 to 1 from its upper left corner, of a point seen from straight above."""
        x, y, z = self.data.xpos[body]
        depth = CENTRE[2] + DISTANCE - z
        span = 2 * depth * math.tan(math.radians(self.model.vis.global_.fovy) / 2)
        return np.array([0.5 + (x - CENTRE[0]) / span, 0.5 - (y - CENTRE[1]) / span])


def _undrawable(error: Exception) -> str:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    kind = os.environ["MUJOCO_GL"]
    return f"MuJoCo cannot draw by MUJOCO_GL={kind} ({reason}); install that OpenGL library or name another in it"
