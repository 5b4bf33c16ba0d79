// Activation functions, by number: 0 none, 1 GELU (erf), 2 GELU (tanh), 3 SiLU, 4 QuickGELU.

// Abramowitz and Stegun 7.1.26, absolute error below 1.5e-7.
fn erf(x: f32) -> f32 {
    let a = abs(x);
    let t = 1.0 / (1.0 + 0.3275911 * a);
    let series = ((((1.061405429 * t - 1.453152027) * t + 1.421413741) * t - 0.284496736) * t + 0.254829592) * t;
    return sign(x) * (1.0 - series * exp(-a * a));
}

fn sigmoid(x: f32) -> f32 {
    return 1.0 / (1.0 + exp(-x));
}

fn activate(x: f32, kind: u32) -> f32 {
    switch kind {
        case 1u: {
            return 0.5 * x * (1.0 + erf(x * 0.70710678));
        }
        case 2u: {
            // 0.5 (1 + tanh z) = sigmoid(2 z), which unlike tanh overflows nowhere.
            return x * sigmoid(1.59576912 * (x + 0.044715 * x * x * x));
        }
        case 3u: {
            return x * sigmoid(x);
        }
        case 4u: {
            return x * sigmoid(1.702 * x);
        }
        default: {
            return x;
        }
    }
}
