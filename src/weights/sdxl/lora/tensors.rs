//! Names of tensors in adapter files: the module that a tensor adapts, and its role there.

/// What a tensor of an adapter is for. Indices count the factors of LoHa and LoKr from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Role {
    /// LoRA's up matrix, B in PEFT: [rows, rank].
    Up,
    /// LoRA's down matrix, A in PEFT: [rank, columns].
    Down,
    /// The core of a convolution in Tucker's decomposition: [rank, rank, height, width].
    Mid,
    /// The bias of LoRA's up matrix: [rows].
    UpBias,
    Alpha,
    /// A factor on the whole term.
    Scalar,
    /// DoRA's magnitudes as LyCORIS stores them: of rows or of input channels.
    DoraScale,
    /// DoRA's magnitudes as PEFT stores them: of rows.
    Magnitude,
    HadaA(u8),
    HadaB(u8),
    HadaCore(u8),
    Kron(u8),
    KronA(u8),
    KronB(u8),
    /// The core of LoKr's second factor.
    KronCore,
    /// The difference of whole weights.
    Diff,
    /// The difference of biases.
    DiffBias,
    /// IA³: factors of rows or input channels.
    Vector,
    /// IA³: whether the factors are those of input channels.
    OnInput,
}

/// What may follow a part of a name.
#[derive(Clone, Copy)]
enum End {
    /// Nothing.
    Nothing,
    /// `.weight`.
    Weight,
    /// Nothing, `.weight`, the name of an adapter in PEFT, or that name and `.weight`.
    Adapter,
}

/// Parts of names with their roles.
const PARTS: [(&str, End, Role); 27] = [
    ("lora_up", End::Adapter, Role::Up),
    ("lora_down", End::Adapter, Role::Down),
    ("lora_mid", End::Adapter, Role::Mid),
    ("lora_B", End::Adapter, Role::Up),
    ("lora_A", End::Adapter, Role::Down),
    ("up", End::Weight, Role::Up),
    ("down", End::Weight, Role::Down),
    ("alpha", End::Nothing, Role::Alpha),
    ("scalar", End::Nothing, Role::Scalar),
    ("dora_scale", End::Adapter, Role::DoraScale),
    ("lora_magnitude_vector", End::Adapter, Role::Magnitude),
    ("hada_w1_a", End::Adapter, Role::HadaA(0)),
    ("hada_w1_b", End::Adapter, Role::HadaB(0)),
    ("hada_w2_a", End::Adapter, Role::HadaA(1)),
    ("hada_w2_b", End::Adapter, Role::HadaB(1)),
    ("hada_t1", End::Adapter, Role::HadaCore(0)),
    ("hada_t2", End::Adapter, Role::HadaCore(1)),
    ("lokr_w1", End::Adapter, Role::Kron(0)),
    ("lokr_w1_a", End::Adapter, Role::KronA(0)),
    ("lokr_w1_b", End::Adapter, Role::KronB(0)),
    ("lokr_w2", End::Adapter, Role::Kron(1)),
    ("lokr_w2_a", End::Adapter, Role::KronA(1)),
    ("lokr_w2_b", End::Adapter, Role::KronB(1)),
    ("lokr_t2", End::Adapter, Role::KronCore),
    ("diff", End::Nothing, Role::Diff),
    ("diff_b", End::Nothing, Role::DiffBias),
    ("on_input", End::Nothing, Role::OnInput),
];

/// LyCORIS' differences of norms.
const NORMS: [(&str, Role); 2] = [("w_norm", Role::Diff), ("b_norm", Role::DiffBias)];

/// The name of an embedding that the file bundles, if `name` is one of its tensors.
pub(super) fn embedding(name: &str) -> Option<&str> {
    let rest = name.strip_prefix("bundle_emb.")?;
    Some(rest.split_once('.').map_or(rest, |(name, _)| name))
}

/// The module of tensor `name`, as the file writes it, and the tensor's role; `None` for another tensor.
pub(super) fn parse(name: &str) -> Option<(&str, Role)> {
    let mut end = name.len();
    while let Some(dot) = name[..end].rfind('.') {
        let (module, part, rest) = (&name[..dot], &name[dot + 1..end], &name[end..]);
        end = dot;
        if let Some(role) = role(part, rest) {
            return Some((module, role));
        }
    }
    None
}

/// The role of a tensor whose name has `part` after the module; `rest` is empty or starts with a dot.
fn role(part: &str, rest: &str) -> Option<Role> {
    if let Some((_, role)) = NORMS.iter().find(|(norm, _)| *norm == part) {
        return rest.is_empty().then_some(*role);
    }
    let (_, end, role) = *PARTS.iter().find(|(known, ..)| *known == part)?;
    let rest: Vec<&str> = rest.split('.').skip(1).collect();
    match (end, rest.as_slice()) {
        (End::Nothing | End::Adapter, []) | (End::Weight | End::Adapter, ["weight"]) => Some(role),
        (End::Adapter, ["bias"] | [_, "bias"]) => (role == Role::Up).then_some(Role::UpBias),
        (End::Adapter, [_] | [_, "weight"]) => Some(role),
        _ => None,
    }
}

/// A module's name in the one form in which names are compared: underscores for dots, without what trainers put around
/// it: `torch.compile`'s wrapper, diffusers' attention processors (`….attn1.processor.to_q_lora`), names of layers
/// (`….lora_linear_layer`).
pub(super) fn canonical(module: &str) -> String {
    let name = module.replace("_orig_mod.", "").replace(".processor.", ".");
    let ends = [".lora_linear_layer", ".lora", "_lora", ".base_layer"];
    let name = ends.iter().find_map(|end| name.strip_suffix(end)).unwrap_or(&name);
    name.replace('.', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trainers_names_of_one_module_are_the_same() {
        let expected = "unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q";
        let module = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1";
        for (end, role) in [
            (".to_q.lora_A.weight", Role::Down),
            (".to_q.lora_B.default_0.weight", Role::Up),
            (".to_q.lora_B.bias", Role::UpBias),
            (".to_q.lora_magnitude_vector", Role::Magnitude),
            (".to_q.lora_magnitude_vector.default.weight", Role::Magnitude),
            (".to_q.lora.down.weight", Role::Down),
            (".to_q.lora_linear_layer.up.weight", Role::Up),
            (".processor.to_q_lora.down.weight", Role::Down),
            (".to_q.lora_mid.weight", Role::Mid),
            (".to_q.alpha", Role::Alpha),
            (".to_q.hada_w1_a", Role::HadaA(0)),
            (".to_q.lokr_w2", Role::Kron(1)),
            (".to_q.w_norm", Role::Diff),
        ] {
            let name = format!("{module}{end}");
            let (found, found_role) = parse(&name).unwrap_or_else(|| panic!("{name}"));
            assert_eq!((canonical(found).as_str(), found_role), (expected, role), "{name}");
        }
        for name in ["", ".", "weight", "a.weight", "a.alpha.weight", "a.oft_blocks", "down_blocks.0.x", "up.weight"] {
            assert_eq!(parse(name), None, "{name}");
        }
        assert_eq!(embedding("bundle_emb.my style.clip_l"), Some("my style"));
        assert_eq!(embedding("lora_unet_x.alpha"), None);
    }
}
