//! The tensors of each network of Stable Diffusion XL.

use super::config::{TextEncoderConfig, UnetConfig, VaeConfig};
use crate::tensor::Precision;
use crate::weights::expected::{ExpectedTensor, Storage, TensorList};

impl TensorList {
    fn convolution(&mut self, name: &str, output: usize, input: usize, side: usize) {
        self.layer(name, &[output, input, side, side]);
    }

    /// The first or the last convolution of a network: small, and sensitive to rounding.
    fn end_convolution(&mut self, name: &str, output: usize, input: usize) {
        self.layer_at_least(Precision::F16, name, &[output, input, 3, 3]);
    }

    /// A residual block; `time` is the width of the timestep's embedding, where there is one.
    fn resnet(&mut self, name: &str, input: usize, output: usize, time: Option<usize>) {
        self.norm(&format!("{name}.norm1"), &[input]);
        self.convolution(&format!("{name}.conv1"), output, input, 3);
        if let Some(time) = time {
            self.layer(&format!("{name}.time_emb_proj"), &[output, time]);
        }
        self.norm(&format!("{name}.norm2"), &[output]);
        self.convolution(&format!("{name}.conv2"), output, output, 3);
        if input != output {
            self.convolution(&format!("{name}.conv_shortcut"), output, input, 1);
        }
    }

    fn transformer(&mut self, name: &str, width: usize, context: usize, depth: Option<usize>) {
        let Some(depth) = depth else { return };
        self.norm(&format!("{name}.norm"), &[width]);
        self.layer(&format!("{name}.proj_in"), &[width, width]);
        self.layer(&format!("{name}.proj_out"), &[width, width]);
        for layer in 0..depth {
            let name = format!("{name}.transformer_blocks.{layer}");
            for norm in ["norm1", "norm2", "norm3"] {
                self.norm(&format!("{name}.{norm}"), &[width]);
            }
            for (attention, from) in [("attn1", width), ("attn2", context)] {
                self.matrix(&format!("{name}.{attention}.to_q"), &[width, width]);
                self.matrix(&format!("{name}.{attention}.to_k"), &[width, from]);
                self.matrix(&format!("{name}.{attention}.to_v"), &[width, from]);
                self.layer(&format!("{name}.{attention}.to_out.0"), &[width, width]);
            }
            self.layer(&format!("{name}.ff.net.0.proj"), &[8 * width, width]);
            self.layer(&format!("{name}.ff.net.2"), &[width, 4 * width]);
        }
    }
}

pub(crate) fn unet(config: &UnetConfig) -> Vec<ExpectedTensor> {
    let mut tensors = TensorList::default();
    let Some((first, last)) = config.levels.first().zip(config.levels.last()) else { return tensors.0 };
    let time = 4 * first.channels;
    let context = config.cross_attention_dim;
    tensors.end_convolution("conv_in", first.channels, config.in_channels);
    for (name, columns) in [
        ("time_embedding.linear_1", first.channels),
        ("time_embedding.linear_2", time),
        ("add_embedding.linear_1", config.projection_class_embeddings_input_dim),
        ("add_embedding.linear_2", time),
    ] {
        tensors.layer_at_least(Precision::F16, name, &[time, columns]);
    }
    // Channels of the skip connections from the down path to the up path.
    let mut skips = vec![first.channels];
    let mut width = first.channels;
    let levels = config.levels.len();
    for (index, level) in config.levels.iter().enumerate() {
        let name = format!("down_blocks.{index}");
        for (layer, depth) in level.down.iter().enumerate() {
            tensors.resnet(&format!("{name}.resnets.{layer}"), width, level.channels, Some(time));
            tensors.transformer(&format!("{name}.attentions.{layer}"), level.channels, context, *depth);
            width = level.channels;
            skips.push(width);
        }
        if index + 1 < levels {
            tensors.convolution(&format!("{name}.downsamplers.0.conv"), width, width, 3);
            skips.push(width);
        }
    }
    tensors.resnet("mid_block.resnets.0", width, last.channels, Some(time));
    tensors.transformer("mid_block.attentions.0", last.channels, context, config.mid_depth);
    tensors.resnet("mid_block.resnets.1", last.channels, last.channels, Some(time));
    for (index, level) in config.levels.iter().rev().enumerate() {
        let name = format!("up_blocks.{index}");
        for (layer, depth) in level.up.iter().enumerate() {
            let input = width + skips.pop().unwrap_or(0);
            tensors.resnet(&format!("{name}.resnets.{layer}"), input, level.channels, Some(time));
            tensors.transformer(&format!("{name}.attentions.{layer}"), level.channels, context, *depth);
            width = level.channels;
        }
        if index + 1 < levels {
            tensors.convolution(&format!("{name}.upsamplers.0.conv"), width, width, 3);
        }
    }
    tensors.norm("conv_norm_out", &[first.channels]);
    tensors.end_convolution("conv_out", config.out_channels, first.channels);
    tensors.0
}

pub(crate) fn vae(config: &VaeConfig) -> Vec<ExpectedTensor> {
    let mut tensors = TensorList::default();
    let channels = &config.block_out_channels;
    let Some((first, last)) = channels.first().copied().zip(channels.last().copied()) else { return tensors.0 };
    let latent = config.latent_channels;
    let middle = |tensors: &mut TensorList, side: &str| {
        for resnet in [0, 1] {
            tensors.resnet(&format!("{side}.mid_block.resnets.{resnet}"), last, last, None);
        }
        if config.mid_block_attention {
            let name = format!("{side}.mid_block.attentions.0");
            tensors.norm(&format!("{name}.group_norm"), &[last]);
            for module in ["to_q", "to_k", "to_out.0"] {
                tensors.layer(&format!("{name}.{module}"), &[last, last]);
            }
            // The left operand of a matmul, which must be f32.
            tensors.layer_at_least(Precision::F32, &format!("{name}.to_v"), &[last, last]);
        }
    };
    tensors.end_convolution("encoder.conv_in", first, config.in_channels);
    let mut width = first;
    for (index, output) in channels.iter().copied().enumerate() {
        for layer in 0..config.layers_per_block {
            tensors.resnet(&format!("encoder.down_blocks.{index}.resnets.{layer}"), width, output, None);
            width = output;
        }
        if index + 1 < channels.len() {
            tensors.convolution(&format!("encoder.down_blocks.{index}.downsamplers.0.conv"), width, width, 3);
        }
    }
    middle(&mut tensors, "encoder");
    tensors.norm("encoder.conv_norm_out", &[last]);
    tensors.end_convolution("encoder.conv_out", 2 * latent, last);
    if config.use_quant_conv {
        tensors.layer_at_least(Precision::F32, "quant_conv", &[2 * latent, 2 * latent, 1, 1]);
    }
    if config.use_post_quant_conv {
        tensors.layer_at_least(Precision::F32, "post_quant_conv", &[latent, latent, 1, 1]);
    }
    tensors.end_convolution("decoder.conv_in", last, latent);
    middle(&mut tensors, "decoder");
    let mut width = last;
    for (index, output) in channels.iter().rev().copied().enumerate() {
        for layer in 0..=config.layers_per_block {
            tensors.resnet(&format!("decoder.up_blocks.{index}.resnets.{layer}"), width, output, None);
            width = output;
        }
        if index + 1 < channels.len() {
            tensors.convolution(&format!("decoder.up_blocks.{index}.upsamplers.0.conv"), width, width, 3);
        }
    }
    tensors.norm("decoder.conv_norm_out", &[first]);
    tensors.end_convolution("decoder.conv_out", config.out_channels, first);
    tensors.0
}

pub(crate) fn text(config: &TextEncoderConfig) -> Vec<ExpectedTensor> {
    let mut tensors = TensorList::default();
    let (width, inner) = (config.hidden_size, config.intermediate_size);
    // Tables are read once per prompt: quantising them would save no time.
    let table = Storage::Table(Precision::F16);
    tensors.push("text_model.embeddings.token_embedding.weight", &[config.vocab_size, width], table);
    tensors.push("text_model.embeddings.position_embedding.weight", &[config.max_positions, width], table);
    for layer in 0..config.num_layers {
        let name = format!("text_model.encoder.layers.{layer}");
        tensors.norm(&format!("{name}.layer_norm1"), &[width]);
        tensors.norm(&format!("{name}.layer_norm2"), &[width]);
        for module in ["q_proj", "k_proj", "v_proj", "out_proj"] {
            tensors.layer(&format!("{name}.self_attn.{module}"), &[width, width]);
        }
        tensors.layer(&format!("{name}.mlp.fc1"), &[inner, width]);
        tensors.layer(&format!("{name}.mlp.fc2"), &[width, inner]);
    }
    tensors.norm("text_model.final_layer_norm", &[width]);
    if let Some(projection) = config.projection_dim {
        tensors.matrix("text_projection", &[projection, width]);
    }
    tensors.0
}

#[cfg(test)]
mod tests {
    use super::super::names::tests::{fixture, fixture_config};
    use super::*;

    fn same(expected: Vec<ExpectedTensor>, part: &str) {
        let mut names: Vec<String> = expected.into_iter().map(|tensor| tensor.name).collect();
        let mut diffusers: Vec<String> = fixture(part).into_iter().map(|[_, name]| name).collect();
        names.sort();
        diffusers.sort();
        assert_eq!(names, diffusers);
    }

    #[test]
    fn the_networks_have_the_tensors_that_diffusers_has() {
        same(unet(&fixture_config()), "unet");
        same(vae(&VaeConfig::sdxl()), "vae");
    }

    /// Parameters as the model's makers count them (2.6 billion, and the file sizes of the release).
    #[test]
    fn the_released_networks_have_the_released_sizes() {
        let parameters = |tensors: Vec<ExpectedTensor>| -> usize {
            tensors.iter().map(|tensor| tensor.shape.iter().product::<usize>()).sum()
        };
        assert_eq!(parameters(unet(&UnetConfig::sdxl())), 2_567_463_684);
        assert_eq!(parameters(vae(&VaeConfig::sdxl())), 83_653_863);
        assert_eq!(parameters(text(&TextEncoderConfig::sdxl_1())), 123_060_480);
        assert_eq!(parameters(text(&TextEncoderConfig::sdxl_2())), 694_659_840);
    }
}
