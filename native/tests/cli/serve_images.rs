//! `mgm serve` over HTTP: images in messages, and generated images.
#![cfg(unix)]

use std::path::{Path, PathBuf};
use std::process::Command;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::common::text;
use crate::serve::{Reply, Server, joined, user};
use crate::{serve_embeddings, serve_responses};

fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../pocket/examples").join(name)
}

fn data_url(media_type: &str, bytes: &[u8]) -> String {
    format!("data:{media_type};base64,{}", STANDARD.encode(bytes))
}

/// A message of a user with images and a question.
fn ask(urls: &[String], question: &str) -> Value {
    let images = urls.iter().map(|url| json!({ "type": "image_url", "image_url": { "url": url } }));
    let parts: Vec<Value> = images.chain([json!({ "type": "text", "text": question })]).collect();
    json!([{ "role": "user", "content": parts }])
}

fn mgm(arguments: &[&str]) -> Vec<u8> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mgm"));
    let output = command.env_remove("MGM_MODELS").args(arguments).output().expect("the binary runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

fn error(reply: &Reply) -> (u16, String, String) {
    let error = reply.json()["error"].clone();
    let name = |field: &str| error[field].as_str().unwrap_or_default().to_owned();
    (reply.status, name("code"), name("param"))
}

#[test]
fn questions_about_images_are_answered_as_by_mgm_chat() {
    let server = Server::start(&["--max-images", "3", "--max-pixels", "0.1M"]).ready();
    let question = "What is in this picture?";
    let file = example("zebras.png");
    let report =
        mgm(&["chat", "--json", "--temperature", "0", "--image", file.to_str().expect("UTF-8"), "--prompt", question]);
    let expected = serde_json::from_slice::<Value>(&report).expect("JSON")["turns"][0].clone();
    let png = std::fs::read(&file).expect("an image");
    let url = data_url("image/png", &png);
    let body = json!({ "messages": ask(std::slice::from_ref(&url), question), "temperature": 0 });
    let first = server.chat(body.clone()).json();
    assert_eq!(first["choices"][0]["message"]["content"], expected["text"], "{first}");
    let usage = &first["usage"];
    assert_eq!(usage["prompt_tokens"], expected["prompt_tokens"]);
    let image_tokens = usage["prompt_tokens_details"]["image_tokens"].as_u64().expect("a number");
    assert!(image_tokens > 0 && usage["prompt_tokens_details"]["cached_tokens"] == 0, "{usage}");
    // The second time it is cached, with everything before it.
    let streamed = server.chat({
        let mut body = body.clone();
        body["stream"] = true.into();
        body["stream_options"] = json!({ "include_usage": true });
        body
    });
    let mut events = streamed.events();
    let usage = events.pop().expect("usage")["usage"].clone();
    assert!(usage["prompt_tokens_details"]["cached_tokens"].as_u64() > Some(image_tokens), "{usage}");
    assert_eq!(joined(&events)[0].0, text(&expected["text"]));
    assert_eq!(server.metric("mgm_encoded_images_total "), 1);
    // A URL by itself, after the text, and a declared type in capitals; two images.
    let capitals = url.replacen("image/png", "Image/PNG", 1);
    let parts = json!([{ "type": "text", "text": question }, { "type": "image_url", "image_url": capitals }]);
    let reply = server.chat(json!({ "messages": [{ "role": "user", "content": parts }], "temperature": 0 }));
    assert_eq!(reply.json()["choices"][0]["message"]["content"], expected["text"]);
    let shark = data_url("image/png", &std::fs::read(example("shark.png")).expect("an image"));
    let two = server.chat(json!({ "messages": ask(&[url.clone(), shark], question), "max_tokens": 4 })).json();
    assert_eq!(two["usage"]["prompt_tokens_details"]["image_tokens"], 2 * image_tokens, "{two}");

    hostile_images_are_refused(&server, &png);
    serve_responses::check(&server, &url);
    serve_embeddings::check(&server);
    let models = server.get("/v1/models").json()["data"].clone();
    assert_eq!((&models[0]["meta"]["input"], &models[1]["id"]), (&json!(["text", "image"]), &json!("pocket-sdxl")));
    // Nothing of it harmed the server.
    let reply = server.chat(body);
    assert_eq!(reply.json()["choices"][0]["message"]["content"], expected["text"]);
}

fn hostile_images_are_refused(server: &Server, png: &[u8]) {
    let place = "messages[0].content[0].image_url";
    let mut wide = png.to_vec();
    // The header of a PNG file: width and height from byte 16, and their checksum.
    wide[16..24].copy_from_slice(&[0, 0, 0xc3, 0x50, 0, 0, 0xc3, 0x50]);
    let crc = crc32(&wide[12..29]);
    wide[29..33].copy_from_slice(&crc.to_be_bytes());
    let mut damaged = png.to_vec();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 0xff;
    let noise: Vec<u8> = (0..2000u32).map(|index| (index.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    for (what, url) in [
        ("50,000 x 50,000 pixels", data_url("image/png", &wide)),
        ("cut off", data_url("image/png", &png[..middle])),
        ("only a head", data_url("image/png", &png[..24])),
        ("damaged", data_url("image/png", &damaged)),
        ("noise", data_url("image/jpeg", &noise)),
        ("nothing", data_url("image/png", &[])),
        ("text", data_url("image/png", b"<svg/>")),
        ("another type", data_url("image/svg+xml", b"<svg/>")),
        ("no type", data_url("", png)),
        ("no image", data_url("text/html", png)),
        ("no base64", "data:image/png;base64,@@@@".to_owned()),
        ("percent encoded", "data:image/png,%89PNG".to_owned()),
        ("cut off base64", data_url("image/png", png)[..1001].to_owned() + "="),
    ] {
        let reply = server.chat(json!({ "messages": ask(&[url], "a"), "max_tokens": 1 }));
        assert_eq!(error(&reply), (400, "invalid_image".to_owned(), place.to_owned()), "{what}: {}", reply.text());
    }
    for url in ["http://127.0.0.1/a.png", "https://example.org/a.png", "file:///etc/passwd", "", "iVBORw0KGgo="] {
        let reply = server.chat(json!({ "messages": ask(&[url.to_owned()], "a"), "max_tokens": 1 }));
        assert_eq!(error(&reply), (400, "image_url_not_allowed".to_owned(), place.to_owned()), "{url}");
    }
    let many = vec![data_url("image/png", png); 4];
    let fourth = "messages[0].content[3].image_url".to_owned();
    let reply = server.chat(json!({ "messages": ask(&many, "a"), "max_tokens": 1 }));
    assert_eq!(error(&reply), (400, "too_many_images".to_owned(), fourth));
    for (image, param) in [
        (json!({ "type": "image_url" }), place),
        (json!({ "type": "image_url", "image_url": 7 }), place),
        (json!({ "type": "image_url", "image_url": { "url": null } }), place),
        (json!({ "type": "image" }), "messages[0].content[0].type"),
    ] {
        let reply = server.chat(json!({ "messages": [{ "role": "user", "content": [image] }], "max_tokens": 1 }));
        assert_eq!(error(&reply), (400, "invalid_value".to_owned(), param.to_owned()), "{image}");
    }
    let tokens = server.post("/tokenize", &json!({ "messages": ask(&many[..1], "a") }));
    assert_eq!(error(&tokens), (400, "unsupported_field".to_owned(), place.to_owned()));
}

/// The checksum of PNG's chunks (the specification's appendix on CRCs).
fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| if crc & 1 == 1 { 0xedb8_8320 ^ (crc >> 1) } else { crc >> 1 };
    !bytes.iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), step))
}

/// A form of texts and files.
fn form(fields: &[(&str, &str)], files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut body = Vec::new();
    for (name, value) in fields {
        body.extend(format!("--xyz\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n").bytes());
    }
    for (name, bytes) in files {
        let head = "Content-Type: application/octet-stream";
        body.extend(
            format!("--xyz\r\nContent-Disposition: form-data; name=\"{name}\"; filename=\"a.png\"\r\n{head}\r\n\r\n")
                .bytes(),
        );
        body.extend(*bytes);
        body.extend(b"\r\n");
    }
    body.extend(b"--xyz--\r\n");
    body
}

impl Server {
    fn post_form(&self, path: &str, body: &[u8], more: &[(&str, &str)]) -> Reply {
        let headers = [&[("content-type", "multipart/form-data; boundary=xyz")], more].concat();
        self.request("POST", path, &headers, body).reply()
    }
}

#[test]
fn generated_images_are_those_of_mgm_generate() {
    let server = Server::start(&[]).ready();
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("a.png");
    let (out_name, file) = (out.to_str().expect("UTF-8"), example("shark.png"));
    let file_name = file.to_str().expect("UTF-8");
    let common =
        ["generate", "--prompt", "a red car", "--steps", "2", "--seed", "7", "--size", "64x64", "--out", out_name];
    let expected = |more: &[&str]| {
        mgm(&[&common, more].concat());
        std::fs::read(&out).expect("an image")
    };
    let image_of = |value: &Value| STANDARD.decode(text(&value["b64_json"])).expect("base64");

    // Texts are answered meanwhile, and an image that nobody waits for is given up.
    let slow = server.send("/v1/images/generations", &json!({ "prompt": "a red car", "steps": 1000 }));
    let reply = server.chat(json!({ "messages": user("What is your name?"), "temperature": 0, "max_tokens": 2 }));
    assert_eq!((reply.status, server.metric("mgm_images_total ")), (200, 0));
    drop(slow);
    let mut body = json!({ "prompt": "a red car", "steps": 2, "seed": 7, "size": "64x64", "model": "pocket-sdxl", "quality": "high" });
    let reply = server.post("/v1/images/generations", &body);
    let answer = reply.json();
    assert_eq!((reply.status, reply.header("x-mgm-ignored")), (200, None), "{answer}");
    let drawn = expected(&[]);
    assert!(image_of(&answer["data"][0]) == drawn, "another image than that of mgm generate");
    let settings = &answer["data"][0]["mgm"];
    assert_eq!(
        (&settings["seed"], &settings["num_inference_steps"], &answer["size"]),
        (&json!(7), &json!(2), &json!("64x64"))
    );

    // A stream with previews: the images of a batch have the seeds that follow.
    for (field, value) in [("seed", json!(6)), ("n", json!(2)), ("stream", json!(true)), ("partial_images", json!(1))] {
        body[field] = value;
    }
    let events = server.post("/v1/images/generations", &body).named_events();
    let names: Vec<&str> = events.iter().map(|(name, _)| name.as_str()).collect();
    let (partial, completed) = ("image_generation.partial_image", "image_generation.completed");
    assert_eq!(names, [partial, completed, partial, completed]);
    assert!(events.iter().all(|(name, event)| event["type"] == name.as_str()));
    assert!(image_of(&events[3].1) == drawn && image_of(&events[1].1) != drawn);
    assert!(image_of(&events[0].1).starts_with(b"\x89PNG"));

    // Inpainting with both kinds of masks, and image to image.
    let image = std::fs::read(&file).expect("an image");
    let fields = [("prompt", "a red car"), ("steps", "2"), ("seed", "7"), ("size", "64x64")];
    let edit = |fields: &[(&str, &str)], files: &[(&str, &[u8])]| {
        let reply = server.post_form("/v1/images/edits", &form(fields, files), &[]);
        assert_eq!(reply.status, 200, "{}", reply.text());
        image_of(&reply.json()["data"][0])
    };
    let mask_file = folder.path().join("mask.png");
    let (white, transparent) = masks();
    std::fs::write(&mask_file, &white).expect("a mask");
    let masked = expected(&["--init-image", file_name, "--mask", mask_file.to_str().expect("UTF-8")]);
    assert!(edit(&fields, &[("image", &image), ("mask", &white)]) == masked);
    assert!(edit(&fields, &[("image[]", &image), ("mask", &transparent)]) == masked, "transparent is white");
    let strong = [&fields[..], &[("strength", "0.8")]].concat();
    assert!(![&masked, &drawn].contains(&&edit(&strong, &[("image", &image)])));
    let varied = server.post_form("/v1/images/variations", &form(&fields[1..], &[("image", &image)]), &[]);
    assert_eq!((varied.status, varied.json()["data"].as_array().map(Vec::len)), (200, Some(1)));
    assert_eq!(server.metric("mgm_images_total "), 7);

    wrong_image_requests_have_a_code(&server, &image);
}

/// Masks of the right half: white, and as transparency of a light image.
fn masks() -> (Vec<u8>, Vec<u8>) {
    let encode = |image: image::DynamicImage| {
        let mut bytes = std::io::Cursor::new(Vec::new());
        image.write_to(&mut bytes, image::ImageFormat::Png).expect("a PNG");
        bytes.into_inner()
    };
    let side = 64;
    let white = image::RgbImage::from_fn(side, side, |x, _| image::Rgb([if x < side / 2 { 0 } else { 255 }; 3]));
    let clear =
        image::RgbaImage::from_fn(side, side, |x, _| image::Rgba([230, 230, 200, if x < side / 2 { 255 } else { 0 }]));
    (encode(white.into()), encode(clear.into()))
}

fn wrong_image_requests_have_a_code(server: &Server, image: &[u8]) {
    let mut body = json!({ "prompt": "a" });
    for (field, value, code) in [
        ("prompt", json!(null), "invalid_value"),
        ("prompt", json!("a".repeat(40_000)), "invalid_value"),
        ("n", json!(5), "invalid_value"),
        ("size", json!("100x100"), "invalid_value"),
        ("size", json!("4096x4096"), "invalid_value"),
        ("steps", json!(0), "invalid_value"),
        ("steps", json!(1001), "invalid_value"),
        ("guidance", json!(-1), "invalid_value"),
        ("scheduler", json!("best"), "invalid_value"),
        ("seed", json!("x"), "invalid_value"),
        ("response_format", json!("url"), "unsupported_field"),
        ("output_format", json!("webp"), "unsupported_field"),
    ] {
        body[field] = value.clone();
        let reply = server.post("/v1/images/generations", &body);
        assert_eq!(error(&reply), (400, code.to_owned(), field.to_owned()), "{value}");
        body = json!({ "prompt": "a" });
    }
    body["stream"] = true.into();
    body["partial_images"] = 4.into();
    assert_eq!(error(&server.post("/v1/images/generations", &body)).2, "partial_images");
    body["model"] = "dall-e-3".into();
    assert_eq!(error(&server.post("/v1/images/generations", &body)).0, 404);

    let edits = "/v1/images/edits";
    let prompt = ("prompt", "a");
    for (fields, files, code, param) in [
        (&[prompt][..], &[][..], "invalid_value", "image"),
        (&[], &[("image", image)], "invalid_value", "prompt"),
        (&[prompt, ("strength", "2")], &[("image", image)], "invalid_value", "strength"),
        (&[prompt], &[("image", &image[..100])], "invalid_image", "image"),
        (&[prompt], &[("image", image), ("mask", b"x")], "invalid_image", "mask"),
        (&[prompt], &[("image", image), ("image", image)], "unsupported_field", "image"),
        (&[prompt, ("image", "x")], &[], "invalid_value", "image"),
    ] {
        let reply = server.post_form(edits, &form(fields, files), &[]);
        assert_eq!(error(&reply), (400, code.to_owned(), param.to_owned()), "{}", reply.text());
    }
    let files = [("image", image), ("mask", image)];
    let reply = server.post_form("/v1/images/variations", &form(&[], &files), &[]);
    assert_eq!(error(&reply), (400, "unsupported_field".to_owned(), "mask".to_owned()));
    let whole = form(&[prompt], &[("image", image)]);
    for body in [&whole[..whole.len() / 2], b"", b"--xyz", b"--xyz\r\n\r\n\r\n--xyz--"] {
        assert_eq!(error(&server.post_form(edits, body, &[])).1, "invalid_form");
    }
    assert_eq!(error(&server.post(edits, &json!({}))).0, 415);
    // A page of another origin can send a form without asking.
    let reply = server.post_form(edits, &whole, &[("origin", "http://evil.example")]);
    assert_eq!((reply.status, error(&reply).1), (403, "origin_not_allowed".to_owned()));
}
