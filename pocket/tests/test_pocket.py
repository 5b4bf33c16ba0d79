"""What training rests on: the world says only what is so, held-out combinations are held out, and ids, sequences and layouts
are those of the reference. Needs no trained model."""

import random
import tempfile
import unittest
from pathlib import Path

import torch
from transformers import LlamaTokenizer

from pocket import data
from pocket.export import checkpoint_names
from pocket.models.mgm import Mgm
from pocket.models.vision import Depthwise, Mining
from pocket.tokenizer import IMAGE, SYSTEM, Tokenizer, train
from pocket.world import drawings, things
from pocket.world.scene import GRID, draw_scene, render
from pocket.world.talk import NUMBERS, corpus, drawing_turn, talk_about


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
        scenes = [draw_scene(data.HELD_OUT + seed, held_out=True) for seed in range(200)]
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
        """The questions whose answers can be told from their words alone, checked another way."""
        checked = 0
        for seed in range(400):
            scene = draw_scene(seed)
            names = [thing.kind.name for thing in scene.things]
            texts = [label.text for label in scene.labels]
            for turn in talk_about(scene, random.Random(seed), 12):
                question = turn.question.rstrip("?.")
                if turn.kind.startswith("read"):
                    self.assertIn(turn.answer, texts)
                elif turn.kind == "refuse" and turn.answer != "There is no text.":
                    name = turn.answer.removeprefix("There is no ").rstrip(".")
                    self.assertNotIn(name, names)
                    self.assertIn(name, question)
                elif question.startswith("How many ") and turn.kind == "count":
                    words = question.removeprefix("How many ").removesuffix(" are there").removesuffix(" do you see")
                    if words == "things":
                        self.assertEqual(turn.answer, NUMBERS[len(names)])
                    elif not words.endswith(" things"):
                        kind = next(k for k in things.KINDS if k.plural == words)
                        self.assertEqual(turn.answer, NUMBERS[names.count(kind.name)])
                    checked += 1
                elif turn.kind == "describe":
                    self.assertTrue(all(name in turn.answer.lower() for name in names))
        self.assertGreater(checked, 100)

    def test_drawings_are_held_out_too(self) -> None:
        for seed in range(200):
            drawing = drawings.draw(random.Random(seed), held_out=seed % 2 == 0)
            held = drawing.painted and things.held_colour(drawing.kind.name, drawing.colour)
            self.assertEqual(held, seed % 2 == 0)


class Text(unittest.TestCase):
    @classmethod
    def setUpClass(cls) -> None:
        cls.folder = tempfile.TemporaryDirectory()
        train(corpus(300, draw_scene), 1000, Path(cls.folder.name))
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
            # Sums over pictures and pixels are in f32.
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
