"""Makes the fixtures in this folder: small images resized, decoded and preprocessed by Pillow, the CLIP processor and torch.

Run from anywhere; see tests/reference/README.md for the environment.

resize.safetensors      source.{w}x{h} u8 [h,w,3]; bicubic.{w}x{h}.{W}x{H} u8 [H,W,3] by Pillow's Image.resize
decode.safetensors      {file} u8 [h,w,3]: Image.open(file).convert("RGB") of each image in decode/
formats.safetensors     the same of each image in formats/
corrected.safetensors   {folder}/{file} u8 [h,w,3]: each image of both folders as viewers show it
preprocess.safetensors  {case}.source u8 [h,w,3]; {case}.high f32 [3,S,S]; {case}.low f32 [n,3,s,s] by the processor
                        and torch.nn.functional.interpolate; the case's name holds its parameters
bilinear.safetensors    source.{w}x{h} f32 [2,h,w]; {w}x{h}.{W}x{H} f32 [2,H,W] by interpolate
"""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from safetensors.numpy import save_file
from transformers import CLIPImageProcessor

HERE = Path(__file__).parent
MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]


def test_image(rng, width, height):
    """An image with smooth areas, hard edges and noise, so that clamping and rounding both happen."""
    y, x = np.mgrid[0:height, 0:width]
    smooth = np.stack([x * 255 / max(width - 1, 1), y * 255 / max(height - 1, 1), (x + y) % 256], -1)
    edges = np.where(((x // 3 + y // 5) % 2 == 0)[..., None], 255, 0)
    noise = rng.integers(0, 256, (height, width, 3))
    which = rng.integers(0, 3, (height, width, 1))
    return np.select([which == 0, which == 1], [smooth, edges], noise).astype(np.uint8)


def resize_fixtures(rng):
    sizes = {
        (1, 1): [(1, 1), (7, 5), (32, 32)],
        (2, 3): [(3, 2), (17, 19)],
        (31, 23): [(31, 23), (31, 40), (50, 23), (62, 46), (7, 9), (1, 1), (13, 64), (97, 3)],
        (48, 48): [(24, 24), (47, 49), (96, 96), (11, 11)],
        (100, 2): [(10, 40), (64, 64), (3, 2)],
        (1, 90): [(20, 20), (1, 7)],
        (257, 1): [(16, 16), (300, 1)],
        (640, 3): [(5, 9)],
        (5, 1000): [(24, 24)],
        (131, 127): [(96, 96), (33, 130), (130, 33)],
    }
    out = {}
    for (w, h), targets in sizes.items():
        source = test_image(rng, w, h)
        out[f"source.{w}x{h}"] = source
        for W, H in targets:
            resized = Image.fromarray(source).resize((W, H), Image.BICUBIC)
            out[f"bicubic.{w}x{h}.{W}x{H}"] = np.asarray(resized)
    save_file(out, HERE / "resize.safetensors")


def bilinear_fixtures(rng):
    out = {}
    for (w, h), targets in {
        (1, 1): [(1, 1), (4, 3)],
        (48, 48): [(21, 21), (96, 96), (47, 48)],
        (37, 29): [(16, 13), (50, 41), (1, 1)],
        (1000, 2): [(337, 1), (437, 3)],
    }.items():
        source = rng.standard_normal((2, h, w), dtype=np.float32)
        out[f"source.{w}x{h}"] = source
        for W, H in targets:
            resized = F.interpolate(torch.from_numpy(source)[None], size=(H, W), mode="bilinear", align_corners=False)
            out[f"{w}x{h}.{W}x{H}"] = resized[0].numpy()
    save_file(out, HERE / "bilinear.safetensors")


def pad_to_square(image):
    """Paste in the middle of a square of the mean colour (specification 2.1, step 2)."""
    side = max(image.size)
    canvas = Image.new("RGB", (side, side), tuple(int(m * 255) for m in MEAN))
    canvas.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return canvas


def preprocess_fixtures(rng):
    out = {}
    for w, h, high, low, grid, glob, pad in [
        (1, 1, 16, 7, 1, 0, 1),
        (50, 31, 48, 21, 1, 0, 1),
        (31, 50, 48, 21, 1, 0, 1),
        (64, 64, 48, 21, 2, 1, 1),
        (75, 40, 64, 14, 2, 0, 1),
        (50, 31, 48, 21, 1, 0, 0),
        (33, 70, 48, 14, 2, 1, 0),
        (3, 200, 24, 14, 1, 1, 0),
        (199, 4, 24, 7, 2, 1, 1),
    ]:
        source = test_image(rng, w, h)
        image = Image.fromarray(source)
        if pad:
            image = pad_to_square(image)
        processor = CLIPImageProcessor(
            size={"shortest_edge": high}, crop_size={"height": high, "width": high}, image_mean=MEAN, image_std=STD
        )
        a = torch.from_numpy(processor(image, return_tensors="np", input_data_format="channels_last")["pixel_values"])
        side = low * grid
        b = F.interpolate(a, size=(side, side), mode="bilinear", align_corners=False)
        tiles = [
            b[0, :, r * low : (r + 1) * low, c * low : (c + 1) * low] for r in range(grid) for c in range(grid)
        ]
        if glob:
            tiles.append(F.interpolate(b, size=(low, low), mode="bilinear", align_corners=False)[0])
        case = f"{w}x{h}.high{high}.low{low}.grid{grid}.global{glob}.pad{pad}"
        out[f"{case}.source"] = source
        out[f"{case}.high"] = a[0].numpy()
        out[f"{case}.low"] = torch.stack(tiles).numpy()
    save_file(out, HERE / "preprocess.safetensors")


def png(width, height, depth, colour_type, rows, extra=b""):
    """A PNG of any bit depth and colour type; `rows` are its packed rows."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def decode_fixtures(rng):
    folder = HERE / "decode"
    folder.mkdir(exist_ok=True)
    source = test_image(rng, 23, 17)
    rgb = Image.fromarray(source)
    alpha = Image.fromarray(rng.integers(0, 256, (17, 23), dtype=np.uint8))
    rgba = rgb.copy()
    rgba.putalpha(alpha)
    la = rgb.convert("L")
    la.putalpha(alpha)

    rgb.save(folder / "rgb.png")
    rgba.save(folder / "rgba.png")
    rgb.convert("L").save(folder / "gray.png")
    la.save(folder / "gray_alpha.png")
    rgb.convert("1").save(folder / "one_bit.png")
    rgb.quantize(40).save(folder / "palette.png")
    rgb.quantize(40).save(folder / "palette_transparent.png", transparency=3)
    rgb.save(folder / "rgb.bmp")
    rgb.quantize(60).save(folder / "palette.gif")
    rgb.quantize(60).save(folder / "palette_transparent.gif", transparency=5)
    rgb.save(folder / "lossless.webp", lossless=True)
    rgba.save(folder / "lossless_alpha.webp", lossless=True, exact=True)
    # A JPEG that a viewer would turn by 90 degrees; smooth, so that decoders agree closely.
    smooth = Image.fromarray(source[:4, :6]).resize((48, 32), Image.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = 6
    smooth.save(folder / "rotated.jpg", quality=95, subsampling=0, exif=exif)
    smooth.convert("L").save(folder / "gray.jpg", quality=95)

    wide = rng.integers(0, 65536, (5, 7, 4), dtype=np.uint16)
    wide[0, :, 0] = [0, 1, 127, 128, 255, 256, 65535]

    def rows(samples):
        return [row.astype(">u2").tobytes() for row in samples.reshape(samples.shape[0], -1)]

    for name, colour_type, channels in [("gray16", 0, 1), ("gray_alpha16", 4, 2), ("rgb16", 2, 3), ("rgba16", 6, 4)]:
        (folder / f"{name}.png").write_bytes(png(7, 5, 16, colour_type, rows(wide[..., :channels])))
    packed = rng.integers(0, 256, (6, 4), dtype=np.uint8)
    (folder / "gray4.png").write_bytes(png(8, 6, 4, 0, [row.tobytes() for row in packed]))
    # Gray with one value declared transparent.
    gray = rng.integers(0, 4, (4, 9), dtype=np.uint8)
    trns = b"\0\2"
    chunk = struct.pack(">I", 2) + b"tRNS" + trns + struct.pack(">I", zlib.crc32(b"tRNS" + trns))
    (folder / "gray_trns.png").write_bytes(png(9, 4, 8, 0, [row.tobytes() for row in gray], chunk))

    out = {p.name: np.asarray(Image.open(p).convert("RGB")).copy() for p in sorted(folder.iterdir())}
    save_file(out, HERE / "decode.safetensors")


def format_fixtures(rng):
    """TIFF, the eight EXIF orientations, and containers whose beginning alone decodes."""
    folder = HERE / "formats"
    folder.mkdir(exist_ok=True)
    rgb = Image.fromarray(test_image(rng, 7, 5))
    alpha = Image.fromarray(rng.integers(0, 256, (5, 7), dtype=np.uint8))
    rgba = rgb.copy()
    rgba.putalpha(alpha)
    rgb.save(folder / "rgb.tiff")
    rgb.save(folder / "lzw.tiff", compression="tiff_lzw")
    rgb.save(folder / "deflate.tiff", compression="tiff_adobe_deflate")
    rgb.save(folder / "packbits.tiff", compression="packbits")
    rgb.convert("L").save(folder / "gray.tiff")
    rgba.save(folder / "rgba.tiff")
    wide = rng.integers(0, 65536, (5, 7), dtype=np.uint16)
    wide[0] = [0, 1, 127, 255, 256, 257, 65535]
    Image.fromarray(wide).save(folder / "gray16.tiff")
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        rgb.save(folder / f"orientation{orientation}.png", exif=exif)
    exif = Image.Exif()
    exif[0x0112] = 8
    rgb.save(folder / "orientation8.webp", lossless=True, exif=exif)
    rgb.save(folder / "orientation8.tiff", exif=exif)
    # Progressive, with a thumbnail in its metadata as cameras write it, which has an end marker of its own.
    smooth = rgb.resize((24, 16), Image.BICUBIC)
    thumbnail = io.BytesIO()
    smooth.resize((6, 4)).save(thumbnail, "JPEG")
    exif = Image.Exif()
    exif[0x0112] = 3
    exif[0x927C] = thumbnail.getvalue()
    smooth.save(folder / "orientation3.jpg", quality=95, subsampling=0, exif=exif, progressive=True)

    paths = sorted(folder.iterdir())
    out = {p.name: np.asarray(Image.open(p).convert("RGB")).copy() for p in paths}
    save_file(out, HERE / "formats.safetensors")
    paths += sorted((HERE / "decode").iterdir())
    save_file({f"{p.parent.name}/{p.name}": corrected(p) for p in paths}, HERE / "corrected.safetensors")


def corrected(path):
    """An image as viewers show it: rotated, over white, 16-bit gray scaled as Pillow scales 16-bit RGB."""
    image = ImageOps.exif_transpose(Image.open(path))
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if not image.has_transparency_data:
        return np.asarray(image.convert("RGB")).copy()
    image = image.convert("RGBA")
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=image.getchannel("A"))
    return np.asarray(white).copy()


if __name__ == "__main__":
    rng = np.random.default_rng(20240327)
    resize_fixtures(rng)
    bilinear_fixtures(rng)
    preprocess_fixtures(rng)
    decode_fixtures(rng)
    format_fixtures(rng)
