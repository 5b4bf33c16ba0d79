//! Images against independent sources: Pillow, the Hugging Face CLIP processor and torch, through the fixtures that
//! `tests/data/image/make_fixtures.py` wrote, and the golden checkpoints.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use mgm::Error;
use mgm::image::{Canvas, Image, ImageDecoding, Preprocess, Window, bicubic, bilinear, decode, decode_as};
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;

/// Every value is a few f32 operations on numbers below 4; two orders of summation differ by at most about 4 units in
/// the last place of 2, which is 1e-6. (The coordinates are computed in f32 on both sides.)
const BILINEAR_BOUND: f32 = 1e-6;

fn tests() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests")
}

fn read(path: impl AsRef<Path>) -> Vec<u8> {
    let path = path.as_ref();
    fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn floats(tensor: &TensorView) -> Vec<f32> {
    tensor.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().expect("four bytes"))).collect()
}

fn image_from(tensor: &TensorView) -> Image {
    let [height, width, 3] = *tensor.shape() else { panic!("shape {:?} is not [h, w, 3]", tensor.shape()) };
    Image::new(width, height, tensor.data().to_vec()).expect("an image")
}

/// Asserts that all values agree, NaN failing, and names the worst.
fn assert_close(what: &str, found: &[f32], expected: &[f32], bound: f32) {
    assert_eq!(found.len(), expected.len(), "{what}: number of values");
    for (i, (f, e)) in found.iter().zip(expected).enumerate() {
        assert!((f - e).abs() <= bound, "{what}: value {i} is {f}, expected {e} within {bound}");
    }
}

/// "31x23" as (31, 23).
fn size(text: &str) -> (usize, usize) {
    let (width, height) = text.split_once('x').expect("a size");
    (width.parse().expect("a width"), height.parse().expect("a height"))
}

#[test]
fn bicubic_is_pillows_bit_for_bit() {
    let file = read(tests().join("data/image/resize.safetensors"));
    let fixtures = SafeTensors::deserialize(&file).expect("fixtures");
    let mut cases = 0;
    for (name, expected) in fixtures.tensors() {
        let Some((source, target)) = name.strip_prefix("bicubic.").and_then(|sizes| sizes.split_once('.')) else {
            continue;
        };
        let image = image_from(&fixtures.tensor(&format!("source.{source}")).expect("the source"));
        let (width, height) = size(target);
        let whole = Window { left: 0, top: 0, width, height };
        let resized = bicubic(&Canvas::new(&image), width, height, whole);
        assert!(resized == image_from(&expected), "{name} differs from Pillow");

        // A window is that part of the whole.
        let window = Window { left: width / 3, top: height / 4, width: width.div_ceil(2), height: height.div_ceil(3) };
        let part = bicubic(&Canvas::new(&image), width, height, window);
        for (row, line) in part.data().chunks_exact(3 * window.width).enumerate() {
            let start = 3 * ((window.top + row) * width + window.left);
            assert_eq!(line, &resized.data()[start..start + line.len()], "{name}: row {row} of {window:?}");
        }
        cases += 1;
    }
    assert_eq!(cases, 29);
}

#[test]
fn a_padded_canvas_resizes_as_if_it_had_been_filled() {
    let file = read(tests().join("data/image/resize.safetensors"));
    let fixtures = SafeTensors::deserialize(&file).expect("fixtures");
    let fill = [122, 116, 104];
    for (name, source) in fixtures.tensors().iter().filter(|(name, _)| name.starts_with("source.")) {
        let image = image_from(source);
        let (width, height) = (image.width(), image.height());
        let side = width.max(height);
        let mut filled = fill.repeat(side * side);
        for (row, line) in image.data().chunks_exact(3 * width).enumerate() {
            let start = 3 * ((row + (side - height) / 2) * side + (side - width) / 2);
            filled[start..start + line.len()].copy_from_slice(line);
        }
        let filled = Image::new(side, side, filled).expect("a square");
        let whole = Window { left: 0, top: 0, width: 40, height: 40 };
        let virtually = bicubic(&Canvas::square(&image, fill), 40, 40, whole);
        assert!(virtually == bicubic(&Canvas::new(&filled), 40, 40, whole), "{name}");
        // A window that the image may not reach.
        for (left, top) in [(0, 0), (37, 0), (0, 37), (18, 18)] {
            let window = Window { left, top, width: 3, height: 3 };
            let part = bicubic(&Canvas::square(&image, fill), 40, 40, window);
            assert!(part == bicubic(&Canvas::new(&filled), 40, 40, window), "{name}, {window:?}");
        }
    }
}

#[test]
fn bilinear_is_torchs() {
    let file = read(tests().join("data/image/bilinear.safetensors"));
    let fixtures = SafeTensors::deserialize(&file).expect("fixtures");
    for (name, expected) in fixtures.tensors() {
        if name.starts_with("source.") {
            continue;
        }
        let (source, target) = name.split_once('.').expect("two sizes");
        let planes = floats(&fixtures.tensor(&format!("source.{source}")).expect("the source"));
        let ((width, height), (out_width, out_height)) = (size(source), size(target));
        let resized = bilinear(&planes, (height, width), (out_height, out_width));
        assert_close(&name, &resized, &floats(&expected), BILINEAR_BOUND);
    }
}

#[test]
fn views_are_the_clip_processors() {
    let file = read(tests().join("data/image/preprocess.safetensors"));
    let fixtures = SafeTensors::deserialize(&file).expect("fixtures");
    let mut cases = 0;
    for (name, source) in fixtures.tensors() {
        let Some(case) = name.strip_suffix(".source") else { continue };
        let parameter = |key: &str| -> usize {
            let value = case.split('.').find_map(|part| part.strip_prefix(key)).expect("a parameter");
            value.parse().expect("a number")
        };
        let preprocess = Preprocess {
            size_high: parameter("high"),
            size_low: parameter("low"),
            grid: parameter("grid"),
            global: parameter("global") == 1,
            pad: parameter("pad") == 1,
            ..Preprocess::default()
        };
        let views = preprocess.views(&image_from(&source)).expect("views");
        let expected = |part: &str| floats(&fixtures.tensor(&format!("{case}.{part}")).expect("a view"));
        assert_close(&format!("{case} high"), &views.high, &expected("high"), 0.0);
        assert_eq!(views.low.len(), preprocess.grid.pow(2) + usize::from(preprocess.global), "{case}: tiles");
        assert_close(&format!("{case} low"), &views.low.concat(), &expected("low"), BILINEAR_BOUND);
        cases += 1;
    }
    assert_eq!(cases, 9);
}

/// `planes[..., ::step, ::step]` of square planes.
fn strided(planes: &[f32], side: usize, step: usize) -> Vec<f32> {
    let rows = planes.chunks_exact(side * side).flat_map(|plane| plane.chunks_exact(side).step_by(step));
    rows.flat_map(|row| row.iter().step_by(step).copied()).collect()
}

#[test]
fn views_of_the_goldens() {
    let folder = std::env::var_os("MGM_GOLDENS").map_or_else(|| tests().join("goldens"), PathBuf::from);
    let mut images = 0;
    for case in fs::read_dir(&folder).expect("goldens").map(|entry| entry.expect("a case").path()) {
        let json: serde_json::Value =
            serde_json::from_slice(&read(case.join("expected.json"))).expect("expected.json is JSON");
        let Some(checkpoint) = json["checkpoint"].as_str() else { continue };
        let config: serde_json::Value =
            serde_json::from_slice(&read(case.join(checkpoint).join("config.json"))).expect("config.json is JSON");
        let preprocess = Preprocess {
            size_high: json["image_size_aux"].as_u64().expect("image_size_aux") as usize,
            grid: json["image_grid"].as_u64().expect("image_grid") as usize,
            global: json["image_global"].as_bool().expect("image_global"),
            pad: config["image_aspect_ratio"] == "pad",
            ..Preprocess::default()
        };
        let file = read(case.join("expected.safetensors"));
        let expected = SafeTensors::deserialize(&file).expect("expected.safetensors");
        for (index, name) in json["images"].as_array().expect("images").iter().enumerate() {
            let name = name.as_str().expect("a name");
            let what = format!("{} {name}", case.display());
            let image = decode(name, &read(case.join(name))).expect("an image");
            let views = preprocess.views(&image).expect("views");
            let tensor = |key: &str| floats(&expected.tensor(&format!("image{index}.{key}")).expect("a tensor"));
            let high = strided(&views.high, preprocess.size_high, 61);
            assert_close(&format!("{what} high"), &high, &tensor("pixels_high_sample"), 0.0);
            let low = strided(&views.low.concat(), preprocess.size_low, 37);
            assert_close(&format!("{what} low"), &low, &tensor("pixels_low_sample"), BILINEAR_BOUND);
            images += 1;
        }
    }
    assert!(images > 0, "no images under {}", folder.display());
}

/// Asserts that the images in `folder` decode to the values in `fixtures`, which Pillow computed.
fn assert_decoded(folder: &str, fixtures: &str, decoding: ImageDecoding) -> usize {
    let file = read(tests().join("data/image").join(fixtures));
    let fixtures = SafeTensors::deserialize(&file).expect("fixtures");
    for (name, expected) in fixtures.tensors() {
        let file = read(tests().join("data/image").join(folder).join(&name));
        let found = decode_as(&name, &file, decoding).expect("an image");
        let expected = image_from(&expected);
        assert_eq!((found.width(), found.height()), (expected.width(), expected.height()), "{name}");
        // Two correct JPEG decoders may round each of the inverse transform and the colour conversion differently.
        let bound = if name.ends_with(".jpg") { 3 } else { 0 };
        for (i, (f, e)) in found.data().iter().zip(expected.data()).enumerate() {
            assert!(f.abs_diff(*e) <= bound, "{name}: byte {i} is {f}, Pillow has {e}");
        }
    }
    fixtures.len()
}

#[test]
fn images_decode_as_pillow_decodes_them() {
    assert_eq!(assert_decoded("decode", "decode.safetensors", ImageDecoding::Reference), 20);
    assert_eq!(assert_decoded("formats", "formats.safetensors", ImageDecoding::Reference), 18);
}

#[test]
fn corrected_images_are_as_viewers_show_them() {
    assert_eq!(assert_decoded("", "corrected.safetensors", ImageDecoding::Corrected), 38);
    assert_eq!(ImageDecoding::default(), ImageDecoding::Corrected);
    for name in ["corrected", "reference"] {
        assert_eq!(name.parse::<ImageDecoding>().expect("a decoding").to_string(), name);
    }
    assert!("raw".parse::<ImageDecoding>().is_err());
}

#[test]
fn images_that_end_early_are_refused() {
    let (mut files, mut failures) = (0, Vec::new());
    for folder in ["decode", "formats"] {
        for entry in fs::read_dir(tests().join("data/image").join(folder)).expect("images") {
            let path = entry.expect("an image").path();
            let (name, bytes) = (path.display().to_string(), read(&path));
            assert!(decode(&name, &bytes).is_ok(), "{name}");
            // A GIF's last bytes hold no pixels: the codes' end, two terminators.
            let pixels_end = bytes.len() - if name.ends_with(".gif") { 8 } else { 1 };
            let cuts = [12, 13, 30, bytes.len() / 4, bytes.len() / 2, bytes.len() * 3 / 4, bytes.len() - 8, pixels_end];
            for cut in cuts.into_iter().filter(|cut| *cut <= pixels_end) {
                match decode(&name, &bytes[..cut]) {
                    Err(Error::Image { reason, .. })
                        if !reason.contains('\n') && reason.contains("cannot be decoded as") => {}
                    Err(error) => failures.push(error.to_string()),
                    Ok(_) => failures.push(format!("{name} is accepted after {cut} of {} bytes", bytes.len())),
                }
            }
            files += 1;
        }
    }
    assert_eq!(files, 38);
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// Found by fuzzing: 228 bytes of WebP whose last chunk, or what follows the file, promises 4 GiB of metadata, which
/// the decoder would allocate.
#[test]
fn promises_of_long_webp_chunks_are_refused_or_ignored() {
    let file = read(tests().join("data/image/formats/orientation8.webp"));
    let exif = file.windows(4).position(|name| name == b"EXIF").expect("metadata");
    let mut long = file.clone();
    long[exif + 4..exif + 8].copy_from_slice(&[0xfa, 0xff, 0xc1, 0xf9]);
    let refused = decode("long.webp", &long).expect_err("a chunk beyond the end");
    assert!(refused.to_string().contains("cut off after 228 bytes"), "{refused}");

    let mut without = file;
    without[exif..exif + 4].copy_from_slice(b"NONE");
    // Nor does the header promise any.
    without[20] = 0;
    let expected = decode("without.webp", &without).expect("an image");
    without.extend(b"EXIF\xff\xff\xff\xf0");
    assert_eq!(decode("trailer.webp", &without).expect("an image"), expected);
}

#[test]
fn a_cut_gif_says_so() {
    let whole = read(tests().join("data/image/decode/palette.gif"));
    // The last bytes are the codes' end, the terminator of the image and that of the file.
    for cut in 8..whole.len() - 1 {
        let error = decode("x.gif", &whole[..cut]).expect_err("a part").to_string();
        assert!(error.contains(&format!("cut off after {cut} bytes")), "{cut} of {}: {error}", whole.len());
    }
}

/// A TIFF whose only strip is `data`, without compression.
struct Tiff<'a> {
    big_endian: bool,
    width: u16,
    height: u16,
    photometric: u16,
    bits: u16,
    samples: u16,
    data: &'a [u8],
    /// More tags, all of 16-bit values, in ascending order.
    tags: &'a [(u16, &'a [u16])],
}

impl Tiff<'_> {
    fn bytes(&self) -> Vec<u8> {
        let short = |value: u16| if self.big_endian { value.to_be_bytes() } else { value.to_le_bytes() };
        let long = |value: usize| match self.big_endian {
            true => (value as u32).to_be_bytes(),
            false => (value as u32).to_le_bytes(),
        };
        let bits = vec![self.bits; usize::from(self.samples)];
        let shorts = |values: &[u16]| -> Vec<u8> { values.iter().flat_map(|value| short(*value)).collect() };
        let own: [(u16, &[u16]); 7] = [
            (256, &[self.width]),
            (257, &[self.height]),
            (258, &bits),
            (259, &[1]),
            (262, &[self.photometric]),
            (277, &[self.samples]),
            (278, &[self.height]),
        ];
        let entry = |(tag, values): &(u16, &[u16])| (*tag, 3, values.len(), shorts(values));
        let mut entries: Vec<(u16, u16, usize, Vec<u8>)> = own.iter().chain(self.tags).map(entry).collect();
        entries.push((279, 4, 1, long(self.data.len()).to_vec()));
        let end = 8 + 2 + 12 * (entries.len() + 1) + 4;
        let far: usize = entries.iter().map(|(.., value)| value.len()).filter(|length| *length > 4).sum();
        entries.push((273, 4, 1, long(end + far).to_vec()));
        entries.sort();
        let mut file = if self.big_endian { b"MM".to_vec() } else { b"II".to_vec() };
        file.extend(short(42));
        file.extend(long(8));
        file.extend(short(entries.len() as u16));
        let mut values = Vec::new();
        for (tag, kind, count, mut value) in entries {
            file.extend(short(tag));
            file.extend(short(kind));
            file.extend(long(count));
            if value.len() > 4 {
                file.extend(long(end + values.len()));
                values.extend(value);
            } else {
                value.resize(4, 0);
                file.extend(value);
            }
        }
        file.extend(long(0));
        file.extend(values);
        file.extend(self.data);
        file
    }
}

/// Pixels of the reference are those of Pillow 12, which does not read gray with a sample that is not opacity.
#[test]
fn tiff_with_palettes_and_few_bits() {
    use ImageDecoding::{Corrected, Reference};
    let map = |count: u32, of: [&dyn Fn(u32) -> u32; 3]| -> Vec<u16> {
        of.iter().flat_map(|channel| (0..count).map(|index| channel(index) as u16)).collect()
    };
    let colors16 = map(16, [&|i| i * 257 * 15, &|i| 65535 - i * 4000, &|i| i * 1000 + 7]);
    let colors256 = map(256, [&|i| i * 256, &|i| 65535 - i * 255, &|i| i * 97]);
    let colors2 = [0, 65535, 65535, 0, 30000, 40000];
    let plain =
        Tiff { big_endian: false, width: 3, height: 2, photometric: 3, bits: 4, samples: 1, data: &[], tags: &[] };
    let nibbles = &[0x12, 0x30, 0xfe, 0xd0][..];
    let with_alpha = &[0, 255, 100, 128, 200, 0, 255, 17][..];
    let indexed_with_opacity = Tiff {
        width: 2,
        height: 1,
        bits: 8,
        samples: 2,
        data: &[1, 255, 200, 0],
        tags: &[(320, &colors256), (338, &[2])],
        ..plain
    };
    let gray = |values: &[u8]| values.iter().flat_map(|value| [*value; 3]).collect::<Vec<u8>>();
    let indexed = vec![15, 240, 3, 30, 224, 7, 45, 209, 11, 225, 21, 58, 210, 37, 54, 195, 52, 50];
    let cases = [
        (Tiff { data: nibbles, tags: &[(320, &colors16)], ..plain }, Reference, indexed.clone()),
        (Tiff { data: nibbles, tags: &[(320, &colors16)], ..plain }, Corrected, indexed.clone()),
        (Tiff { big_endian: true, data: nibbles, tags: &[(320, &colors16)], ..plain }, Corrected, indexed),
        (
            Tiff { width: 2, bits: 8, data: &[0, 1, 200, 255], tags: &[(320, &colors256)], ..plain },
            Corrected,
            vec![0, 255, 0, 1, 255, 0, 200, 56, 75, 255, 1, 96],
        ),
        (
            Tiff { bits: 1, data: &[0b1010_0000, 0b0100_0000], tags: &[(320, &colors2)], ..plain },
            Corrected,
            [[255, 0, 156], [0, 255, 117]].repeat(3).concat(),
        ),
        // With opacity for each index.
        (Tiff { ..indexed_with_opacity }, Reference, vec![1, 255, 0, 200, 56, 75]),
        (Tiff { ..indexed_with_opacity }, Corrected, vec![1, 255, 0, 255, 255, 255]),
        (
            Tiff { width: 2, photometric: 1, bits: 8, samples: 2, data: with_alpha, tags: &[(338, &[2])], ..plain },
            Reference,
            gray(&[0, 100, 200, 255]),
        ),
        (
            Tiff { width: 2, photometric: 1, bits: 8, samples: 2, data: with_alpha, tags: &[(338, &[2])], ..plain },
            Corrected,
            gray(&[0, 177, 255, 255]),
        ),
        // The second sample is no opacity.
        (
            Tiff { width: 2, photometric: 1, bits: 8, samples: 2, data: with_alpha, tags: &[(338, &[0])], ..plain },
            Corrected,
            gray(&[0, 100, 200, 255]),
        ),
        // 16 bits with opacity: the high bytes.
        (
            Tiff {
                width: 1,
                height: 1,
                photometric: 1,
                bits: 16,
                samples: 2,
                data: &[0x34, 100, 0x56, 128],
                tags: &[(338, &[2])],
                ..plain
            },
            Corrected,
            gray(&[177]),
        ),
        (Tiff { photometric: 1, data: nibbles, ..plain }, Reference, gray(&[17, 34, 51, 255, 238, 221])),
        (
            Tiff { big_endian: true, photometric: 0, data: nibbles, ..plain },
            Corrected,
            gray(&[238, 221, 204, 0, 17, 34]),
        ),
        (
            Tiff { width: 5, height: 1, photometric: 1, bits: 2, data: &[0b0001_1011, 0b1000_0000], ..plain },
            Reference,
            gray(&[0, 85, 170, 255, 170]),
        ),
    ];
    for (index, (tiff, decoding, expected)) in cases.iter().enumerate() {
        let bytes = tiff.bytes();
        let image = decode_as("x.tiff", &bytes, *decoding).unwrap_or_else(|error| panic!("{index}: {error}"));
        let size = (usize::from(tiff.width), usize::from(tiff.height));
        assert_eq!(((image.width(), image.height()), image.data()), (size, &expected[..]), "{index}");
        for cut in 0..bytes.len() {
            assert!(decode_as("x.tiff", &bytes[..cut], *decoding).is_err(), "{index}: {cut} of {}", bytes.len());
        }
    }
    // Orientation 6: the left pixel is at the top.
    let tags: &[(u16, &[u16])] = &[(274, &[6]), (320, &colors256)];
    let turned = Tiff { width: 2, height: 1, bits: 8, data: &[1, 200], tags, ..plain };
    for decoding in [Corrected, Reference] {
        let image = decode_as("x.tiff", &turned.bytes(), decoding).expect("an image");
        assert_eq!((image.width(), image.height(), image.data()), (1, 2, &[1, 255, 0, 200, 56, 75][..]));
    }
    // Other kinds are named, with what to do.
    let zeros = &[0; 64][..];
    for (tiff, kind) in [
        (Tiff { photometric: 6, bits: 8, samples: 3, data: zeros, ..plain }, "YCbCr, samples per pixel: 3"),
        (Tiff { photometric: 1, bits: 32, data: zeros, ..plain }, "gray, samples per pixel: 1 of 32 bits"),
        (Tiff { bits: 16, data: zeros, ..plain }, "a palette, samples per pixel: 1 of 16 bits"),
        (Tiff { photometric: 8, bits: 8, samples: 3, data: zeros, ..plain }, "L*a*b*"),
    ] {
        let error = decode("x.tiff", &tiff.bytes()).expect_err(kind).to_string();
        assert!(error.contains(kind) && error.contains("convert it to PNG"), "{error}");
    }
    // A colour that the palette lacks, and no palette.
    for tags in [&[(320, &colors2[..])][..], &[]] {
        assert!(decode("x.tiff", &Tiff { data: nibbles, tags, ..plain }.bytes()).is_err());
    }
}

#[test]
fn images_that_cannot_be_decoded_are_named() {
    let ftyp = |brands: &str| {
        let mut box_of_brands = ((8 + brands.len()) as u32).to_be_bytes().to_vec();
        box_of_brands.extend(b"ftyp");
        box_of_brands.extend(brands.as_bytes());
        box_of_brands.extend([0; 64]);
        box_of_brands
    };
    for (bytes, format, advice) in [
        (ftyp("heic\0\0\0\0mif1heic"), "a HEIC image", "Most Compatible"),
        (ftyp("mif1\0\0\0\0mif1heic"), "a HEIC image", "heif-convert"),
        (ftyp("mif1\0\0\0\0mif1avifmiaf"), "an AVIF image", "avifdec"),
        (ftyp("avif\0\0\0\0"), "an AVIF image", "avifdec"),
        (b"\xff\x0a\0\0".to_vec(), "a JPEG XL image", "djxl"),
        (b"\0\0\0\x0cjP  \r\n\x87\n".to_vec(), "a JPEG 2000 image", "opj_decompress"),
        (b"\xef\xbb\xbf<?xml version='1.0'?><svg>".to_vec(), "an SVG drawing", "rsvg-convert"),
        (b"%PDF-1.7\n".to_vec(), "a PDF document", "pdftoppm"),
        (b"8BPS\0\x01".to_vec(), "a Photoshop document", "export"),
    ] {
        let error = decode("photo", &bytes).expect_err(format).to_string();
        assert!(error.contains(format) && error.contains(advice), "{error}");
    }
    let movie = decode("film", &ftyp("isom\0\0\x02\0isomavc1")).expect_err("a film").to_string();
    assert!(movie.contains("not an image"), "{movie}");
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n";
    let error = decode("photo.jpg", pointer).expect_err("a pointer").to_string();
    assert!(error.contains("git lfs pull"), "{error}");
}

#[cfg(unix)]
#[test]
fn what_is_no_image_file_is_refused_before_it_is_read() {
    let folder = std::env::temp_dir().join(format!("mgm-images-{}", std::process::id()));
    fs::create_dir_all(&folder).expect("a folder");
    let path = |name: &str| folder.join(name);
    let sparse = fs::File::create(path("sparse.jpg")).expect("a file");
    sparse.set_len(3 << 30).expect("a long file");
    // Below the limit, and not an image by its first bytes.
    fs::File::create(path("zeros.png")).expect("a file").set_len(1 << 30).expect("a long file");
    let made = std::process::Command::new("mkfifo").arg(path("pipe.png")).status().expect("mkfifo");
    assert!(made.success());
    let start = Instant::now();
    for (file, reason) in [
        (path("sparse.jpg"), "the file has 3221225472 bytes"),
        (path("zeros.png"), "starts with the bytes 00 00"),
        (path("pipe.png"), "not a regular file"),
        (PathBuf::from("/dev/zero"), "not a regular file"),
        (folder.clone(), "this is a folder"),
    ] {
        let error = Image::open(&file).expect_err(reason).to_string();
        assert!(error.contains(reason) && error.contains(&file.display().to_string()), "{error}");
    }
    assert!(start.elapsed().as_secs_f64() < 5.0, "{:?}", start.elapsed());
    fs::remove_dir_all(folder).expect("the folder");
}

/// A PNG header that promises `width` x `height` pixels of 8-bit RGB, followed by an empty image.
fn promising_png(width: u32, height: u32) -> Vec<u8> {
    let mut bytes = b"\x89PNG\r\n\x1a\n".to_vec();
    let mut chunk = |kind: &[u8], data: &[u8]| {
        bytes.extend((data.len() as u32).to_be_bytes());
        bytes.extend(kind);
        bytes.extend(data);
        let mut crc = u32::MAX;
        for byte in kind.iter().chain(data) {
            crc ^= u32::from(*byte);
            for _ in 0..8 {
                crc = if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 };
            }
        }
        bytes.extend((!crc).to_be_bytes());
    };
    let mut header = width.to_be_bytes().to_vec();
    header.extend(height.to_be_bytes());
    header.extend([8, 2, 0, 0, 0]);
    chunk(b"IHDR", &header);
    chunk(b"IDAT", &[0x78, 0x9c, 3, 0, 0, 0, 0, 1]);
    chunk(b"IEND", &[]);
    bytes
}

#[test]
fn bad_images_are_refused_with_a_reason() {
    let png = read(tests().join("data/image/decode/rgb.png"));
    let jpeg = read(tests().join("data/image/decode/gray.jpg"));
    let cases: [(&str, Vec<u8>, &str); 10] = [
        ("empty", vec![], "the file is empty"),
        ("text", b"Hello, I am text".to_vec(), "starts with the text"),
        ("binary", vec![0, 1, 2, 255, 7], "starts with the bytes 00 01 02 ff 07"),
        ("tiff", b"II*\0\x08\0\0\0".to_vec(), "cannot be decoded as TIFF"),
        ("icon", b"\0\0\x01\0\x01\0\x10\x10".to_vec(), "ICO is not supported"),
        ("cut png", png[..png.len() / 2].to_vec(), "cannot be decoded as PNG"),
        ("cut jpeg", jpeg[..30].to_vec(), "cannot be decoded as JPEG"),
        ("bomb", promising_png(60_000, 60_000), "60000 x 60000 pixels exceed the limits"),
        ("long", promising_png(1 << 20, 1), ""),
        ("no pixels", promising_png(0, 5), ""),
    ];
    for (name, bytes, reason) in cases {
        match decode(name, &bytes) {
            Err(Error::Image { name: found, reason: text }) => {
                assert_eq!(found, name);
                assert!(text.contains(reason), "{name}: {text}");
            }
            other => panic!("{name}: {other:?}"),
        }
    }
}

#[test]
fn settings_that_make_no_sense_are_refused() {
    let dot = Image::new(1, 1, vec![1, 2, 3]).expect("a dot");
    let fine = Preprocess { size_high: 8, size_low: 7, ..Preprocess::default() };
    assert!(fine.views(&dot).is_ok());
    for preprocess in [
        Preprocess { size_high: 0, ..fine.clone() },
        Preprocess { size_low: 0, ..fine.clone() },
        Preprocess { grid: 0, ..fine.clone() },
        Preprocess { grid: usize::MAX, ..fine.clone() },
        Preprocess { size_high: 1 << 40, ..fine.clone() },
        Preprocess { std: [0.2, 0.0, 0.2], ..fine.clone() },
        Preprocess { mean: [f64::NAN; 3], ..fine.clone() },
    ] {
        assert!(matches!(preprocess.views(&dot), Err(Error::InvalidArgument(_))), "{preprocess:?}");
    }
    assert!(Image::new(2, 2, vec![0; 11]).is_err());
    assert!(Image::new(0, 2, vec![]).is_err());
    assert!(Image::new(usize::MAX, 2, vec![]).is_err());
}

#[test]
fn the_smallest_and_the_largest_photographs() {
    let dot = Image::new(1, 1, vec![10, 20, 30]).expect("a dot");
    let views = Preprocess::default().views(&dot).expect("views");
    assert_eq!(views.high.len(), 3 * 768 * 768);
    assert!(views.high[..768 * 768].iter().all(|value| *value == views.high[0]), "a dot becomes one colour");

    let (width, height) = (12_000, 9_000);
    let photograph = Image::new(width, height, vec![200; width * height * 3]).expect("a photograph");
    for pad in [true, false] {
        let start = Instant::now();
        let views = Preprocess { pad, ..Preprocess::default() }.views(&photograph).expect("views");
        println!("12000 x 9000, pad {pad}: {:?}", start.elapsed());
        let centre = 384 * 768 + 384;
        assert_eq!(views.high[centre], ((200.0 * (1.0 / 255.0)) as f32 - 0.48145466f32) / 0.26862954f32);
    }
    // A line as long as can be read: cut or padded, never stored whole, and only what remains of it is computed.
    for (width, height) in [(65_535, 1), (1, 65_535)] {
        let line = Image::new(width, height, vec![9; 65_535 * 3]).expect("a line");
        for pad in [true, false] {
            let start = Instant::now();
            Preprocess { pad, ..Preprocess::default() }.views(&line).expect("views");
            println!("{width} x {height}, pad {pad}: {:?}", start.elapsed());
            assert!(start.elapsed().as_secs_f64() < 30.0, "{width} x {height}: {:?}", start.elapsed());
        }
    }
}
