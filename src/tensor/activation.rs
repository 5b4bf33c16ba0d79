//! Activation functions.

/// An activation function, as layers apply it and configurations name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Activation {
    /// GELU, x Φ(x), with the error function.
    GeluErf,
    /// GELU's tanh approximation.
    GeluTanh,
    /// SiLU, x sigmoid(x).
    Silu,
    /// x sigmoid(1.702 x), as in CLIP.
    QuickGelu,
}

impl Activation {
    /// The activation that transformers' configurations call `name`.
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "silu" | "swish" => Self::Silu,
            "quick_gelu" => Self::QuickGelu,
            "gelu" => Self::GeluErf,
            "gelu_pytorch_tanh" | "gelu_new" | "gelu_fast" => Self::GeluTanh,
            _ => return None,
        })
    }

    /// Its name in transformers' configurations.
    pub fn name(self) -> &'static str {
        match self {
            Self::Silu => "silu",
            Self::QuickGelu => "quick_gelu",
            Self::GeluErf => "gelu",
            Self::GeluTanh => "gelu_pytorch_tanh",
        }
    }
}
