"""Tests of the training data: answers are correct, held-out combinations are held out, and ids, sequences and layouts match the
reference. Needs no trained model."""

import random
import re
import tempfile
import unittest
from collections import Counter
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image
from transformers import LlamaTokenizer

from pocket import data
from pocket.export import checkpoint_names
from pocket.models.mgm import Mgm
from pocket.models.image_model import SIDE, as_tensor
from pocket.models.vision import Depthwise, Mining
from pocket.nearest import nearest
from pocket.tokenizer import IMAGE, SYSTEM, Tokenizer, corpus, train
from pocket.train.lessons import scene_of
from pocket.world import drawings, things
from pocket.world.scene import BACKGROUNDS, GRID, HELD_OUT, Scene, Thing, draw_scene, render
from pocket.world.talk import NUMBERS, Turn, drawing_turn, talk_about
from pocket.world.things import KIND_INDEX, KINDS


class World(unittest.TestCase):
    def test_training_never_shows_a_held_out_combination(self) -> None:
        for seed in range(400):
            scene = draw_scene(seed)
            for i, thing in enumerate(scene.things):
                self.assertFalse(things.held_region(thing.kind.name, thing.region))
                self.assertFalse(thing.painted and things.held_colour(thing.kind.name, thing.colour))
                for other in scene.things[:i]:
                    self.assertFalse(things.held_pair(thing.kind.name, other.kind.name))

    def test_held_out_scenes_have_one(self) -> None:
        scenes = [draw_scene(HELD_OUT + seed, held_out=True) for seed in range(200)]
        self.assertGreater(sum(bool(scene.held_out) for scene in scenes), 190)

    def test_a_seed_is_a_scene(self) -> None:
        self.assertEqual(draw_scene(5), draw_scene(5))
        self.assertEqual(render(draw_scene(5)).tobytes(), render(draw_scene(5)).tobytes())

    def test_no_two_centres_share_a_cell(self) -> None:
        for seed in range(300):
            scene = draw_scene(seed)
            found = [(int(item.x * GRID), int(item.y * GRID)) for item in (*scene.things, *scene.labels)]
            self.assertEqual(len(found), len(set(found)))

    def test_answers_agree_with_the_scene(self) -> None:
        """Checks questions whose answer can be derived from their words, in another way."""
        checked: Counter[str] = Counter()
        for seed in range(600):
            scene = draw_scene(seed)
            for turn in talk_about(scene, random.Random(seed), 14):
                checked[self.check(turn, scene)] += 1
        for form in (
            "read",
            "refuse",
            "count",
            "describe",
            "colour",
            "where",
            "side",
            "relation",
            "bigger",
            "more",
            "exists",
        ):
            self.assertGreater(checked[form], 10, form)

    def check(self, turn: Turn, scene: Scene) -> str:
        """Checks one question and returns its form."""
        names = [thing.kind.name for thing in scene.things]
        question = turn.question.rstrip("?.")

        def called(phrase: str) -> list[Thing]:
            """What a phrase can mean: a kind or another word for it, with or without a colour."""
            found = []
            for thing in scene.things:
                words = {thing.kind.name, things.SYNONYMS.get(thing.kind.name, "")}
                if phrase in words or (thing.painted and phrase == f"{thing.colour} {thing.kind.name}"):
                    found.append(thing)
            return found

        def one(phrase: str) -> Thing:
            found = called(phrase)
            self.assertEqual(len(found), 1, turn)
            return found[0]

        if turn.kind.startswith("read"):
            self.assertIn(turn.answer, [label.text for label in scene.labels])
            return "read"
        if turn.kind == "refuse":
            name = turn.answer.rstrip(".").split(" no ")[1]
            self.assertNotIn(name, names)
            if name != "text":
                self.assertIn(name, question)
            return "refuse"
        if found := re.fullmatch(r"How many (.+?) (are there|do you see)", question):
            words = found[1]
            if words == "things":
                self.assertEqual(turn.answer, NUMBERS[len(names)])
            elif words.endswith(" things"):
                if words.startswith("other"):
                    return "follow"
                colours = [thing.colour for thing in scene.things]
                self.assertEqual(turn.answer, NUMBERS[colours.count(words.split()[0])])
            else:
                kind = next(kind for kind in things.KINDS if kind.plural == words)
                self.assertEqual(turn.answer, NUMBERS[names.count(kind.name)])
            return "count"
        if turn.kind == "describe":
            self.assertTrue(all(name in turn.answer.lower() for name in names))
            return "describe"
        if found := re.fullmatch(r"(?:What|Which) colou?r (?:is|are) the (.+)", question):
            wanted = scene.background if found[1] == "background" else one(found[1]).colour
            self.assertEqual(turn.answer, wanted)
            return "colour"
        if found := re.fullmatch(r"(?:Where|In which part of the picture) (?:is|are) the (.+)", question):
            thing = one(found[1])
            place = things.REGIONS[3 * int(thing.y * 3) + int(thing.x * 3)]
            self.assertTrue(turn.answer.endswith(place), turn)
            return "where"
        if found := re.fullmatch(r"(?:Is|Are) the (.+) (on the left|on the right|at the top|at the bottom)", question):
            thing = one(found[1])
            halves = {
                "on the left": thing.x < 0.5, "on the right": thing.x > 0.5, "at the top": thing.y < 0.5,
                "at the bottom": thing.y > 0.5,
            }  # fmt: skip
            self.assertEqual(turn.answer, "yes" if halves[found[2]] else "no", turn)
            return "side"
        if found := re.fullmatch(r"(?:Is|Are) the (.+) (left of|right of|above|below) the (.+)", question):
            a, b = one(found[1]), one(found[3])
            there = {"left of": a.x < b.x, "right of": a.x > b.x, "above": a.y < b.y, "below": a.y > b.y}[found[2]]
            self.assertEqual(turn.answer, "yes" if there else "no", turn)
            return "relation"
        if found := re.fullmatch(r"Which is (bigger|smaller), the (.+) or the (.+)", question):
            pair = sorted((one(phrase).size, phrase) for phrase in (found[2], found[3]))
            self.assertEqual(turn.answer, f"the {pair[found[1] == 'bigger'][1]}", turn)
            return "bigger"
        if found := re.fullmatch(r"Are there more (.+) than (.+)", question):
            first, second = (
                sum(thing.kind.plural == plural for thing in scene.things) for plural in (found[1], found[2])
            )
            self.assertEqual(turn.answer, "yes" if first > second else "no", turn)
            return "more"
        if found := re.fullmatch(r"(?:Is|Are) there (?:an? )?(.+)|Do you see (?:an? )?(.+)", question):
            there = called(found[1] or found[2])
            self.assertEqual(turn.answer, "yes" if there else "no", turn)
            return "exists"
        return "else"

    def test_drawings_are_held_out_too(self) -> None:
        for seed in range(200):
            drawing = drawings.draw(random.Random(seed), held_out=seed % 2 == 0)
            held = drawing.painted and things.held_colour(drawing.kind.name, drawing.colour)
            self.assertEqual(held, seed % 2 == 0)

    def test_a_lesson_is_what_was_painted(self) -> None:
        """The nearest-image check finds thing, colour, position and size, as in the sample."""
        wanted = drawings.Drawing(KINDS[KIND_INDEX["umbrella"]], "blue", True, "yellow")
        self.assertEqual(drawings.Drawing.of_row(wanted.row()), wanted)
        picture = Image.new("RGB", (SIDE, SIDE), BACKGROUNDS["yellow"])
        picture.paste(drawings.picture(wanted, SIDE, size=0.68), (8, -4))
        found = nearest(as_tensor([data.softened(picture, random.Random(1))])[0], "yellow")
        self.assertEqual(found, ("umbrella", "blue", 0.68, 0.5 + 8 / SIDE, 0.5 - 4 / SIDE))
        self.assertTrue(found.shows(wanted))
        lesson = scene_of(wanted.row() | {"size": found.size, "x": found.x, "y": found.y})
        recipe = data.Recipe(images=True, lessons=[(lesson, picture)])
        samples = [s for s in (data.make_sample(number, recipe) for number in range(200)) if s.scene is lesson]
        self.assertGreater(len(samples), 10)
        for sample in samples:
            for turn in sample.turns:
                self.check(replace(turn, question=turn.question.removesuffix(data.SHORT_ANSWER)), lesson)
        values, _ = data.cells(lesson)
        self.assertEqual(values[data.cell_of(found.x, found.y), 0], 1 + KIND_INDEX["umbrella"])


class Text(unittest.TestCase):
    @classmethod
    def setUpClass(cls) -> None:
        cls.folder = tempfile.TemporaryDirectory()
        train(corpus(300), 1000, Path(cls.folder.name))
        cls.tokenizer = Tokenizer(Path(cls.folder.name))

    @classmethod
    def tearDownClass(cls) -> None:
        cls.folder.cleanup()

    def test_ids_are_those_of_transformers(self) -> None:
        reference = LlamaTokenizer.from_pretrained(self.folder.name)
        for seed in range(40):
            turns = [(turn.question, turn.answer) for turn in talk_about(draw_scene(seed), random.Random(seed), 6)]
            turns.append((drawing_turn(random.Random(seed)).question, None))
            for image in (True, False):
                ids, _ = self.tokenizer.conversation(turns, image)
                asked = [f"<image>\n{q}" if image and i == 0 else q for i, (q, _) in enumerate(turns)]
                text = f"{SYSTEM} " + "".join(
                    f"USER: {q} ASSISTANT:" + ("" if a is None else f" {a}</s>") for q, (_, a) in zip(asked, turns)
                )
                pieces = [reference(piece).input_ids for piece in text.split("<image>")]
                wanted = pieces[0] + [i for piece in pieces[1:] for i in (IMAGE, *piece[1:])]
                self.assertEqual(ids, wanted)

    def test_pictures_are_spliced_in(self) -> None:
        ids = torch.tensor([[1, 5, IMAGE, 6, 7], [1, 5, 6, 7, 0]])
        embed = ids.clamp(min=0).float()[..., None]
        visual = torch.tensor([[[100.0], [101.0], [102.0]]] * 2)
        sequence, went = data.splice(embed, ids, visual)
        self.assertEqual(sequence[0, :, 0].tolist(), [1, 5, 100, 101, 102, 6, 7])
        self.assertEqual(sequence[1, :4, 0].tolist(), [1, 5, 6, 7])
        self.assertEqual([went[0, i].item() for i in (0, 1, 3, 4)], [0, 1, 5, 6])
        self.assertEqual(went[1].tolist(), [0, 1, 2, 3, 4])


class Arithmetic(unittest.TestCase):
    def test_depthwise_gradients_are_the_librarys(self) -> None:
        torch.manual_seed(0)
        x = torch.randn(2, 3, 9, 9, dtype=torch.float64, requires_grad=True)
        weight = torch.randn(3, 1, 7, 7, dtype=torch.float64, requires_grad=True)
        bias = torch.randn(3, dtype=torch.float64, requires_grad=True)
        grad = torch.randn(2, 3, 9, 9, dtype=torch.float64)
        found = torch.autograd.grad(Depthwise.apply(x, weight, bias), (x, weight, bias), grad)
        wanted = torch.autograd.grad(torch.conv2d(x, weight, bias, padding=3, groups=3), (x, weight, bias), grad)
        for mine, theirs in zip(found, wanted):
            # Sums over images and pixels are in f32.
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)

    def test_folded_mining_is_the_papers(self) -> None:
        torch.manual_seed(0)
        low, widths, grid = 8, (4, 6, 8, 10), 2
        mining = Mining(low, sum(widths)).double()
        x = torch.randn(1, grid * grid, low, dtype=torch.float64)
        maps = [torch.randn(1, 8 >> i, 8 >> i, width, dtype=torch.float64) for i, width in enumerate(widths)]
        up = [torch.nn.functional.interpolate(m.permute(0, 3, 1, 2), size=(8, 8), mode="bilinear") for m in maps]
        cells = torch.cat(up, dim=1).reshape(1, -1, grid, 4, grid, 4).permute(0, 2, 4, 3, 5, 1).reshape(1, 4, 16, -1)
        q, k, v = mining.query(x), mining.aux(cells), mining.val(cells)
        share = (torch.einsum("ntc,ntmc->ntm", q, k) / low**0.5).softmax(-1)
        wanted = torch.einsum("ntm,ntmc->ntc", share, v)
        torch.testing.assert_close(mining(x, maps), wanted, rtol=1e-4, atol=1e-5)

    def test_every_tensor_has_a_released_name(self) -> None:
        names = checkpoint_names(Mgm().state_dict())
        self.assertIn("model.vlm_uni_query_projector.1.weight", names)
        self.assertIn("model.vision_tower_aux.vision_stages.1.downsample.1.weight", names)
        self.assertIn("model.layers.0.self_attn.q_proj.weight", names)
        self.assertTrue(all(name.startswith("model.") for name in names))


if __name__ == "__main__":
    unittest.main()
