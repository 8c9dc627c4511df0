#!/usr/bin/env bash
# From nothing to a picture: a tiny SDXL, a small picture set, a LoRA trained on it, and the same prompt and seed drawn
# without and with it. Everything is written below demo_output/. Environment: DEMO_STEPS (40), MINDSPORE (2.7.1).
set -euo pipefail
cd "$(dirname "$0")"
tools/setup_venv.sh requirements.txt
python=.venv/bin/python
out=demo_output
steps=${DEMO_STEPS:-40}
prompt="flatshape, red circle, white background, simple drawing"
mkdir -p "$out"

echo "== 1. a tiny SDXL (random weights, all keys of the real one) and twelve captioned pictures"
[ -f "$out/tiny_sdxl.safetensors" ] || $python -m tools.make_tiny_sdxl --seed 1 --output "$out/tiny_sdxl.safetensors"
$python -m tools.make_demo_data --output_dir "$out/data" --resolution 128

echo "== 2. training a LoRA for $steps steps"
$python sdxl_train_network.py \
    --pretrained_model_name_or_path="$out/tiny_sdxl.safetensors" --dataset_config="$out/data/data.toml" \
    --network_module=networks.lora --network_dim=16 --network_alpha=16 --network_train_unet_only \
    --learning_rate=2e-3 --optimizer_type=AdamW --max_train_steps="$steps" --seed=42 --gradient_checkpointing \
    --output_dir="$out/lora" --output_name=demo

echo "== 3. the same prompt and seed, without and with the LoRA"
draw() { $python sdxl_minimal_inference.py --ckpt_path "$out/tiny_sdxl.safetensors" --prompt "$prompt" --W 128 --H 128 \
    --steps 12 --guidance_scale 5 --seed 7 "$@"; }
draw --output_dir "$out/without_lora"
draw --output_dir "$out/with_lora" --lora_weights "$out/lora/demo.safetensors;1.0"
$python -m tools.side_by_side --output "$out/side_by_side.png" "without LoRA=$out/without_lora" "with LoRA=$out/with_lora"

echo
echo "The LoRA:            $out/lora/demo.safetensors"
echo "The pictures:        $out/without_lora, $out/with_lora"
echo "Both, side by side:  $out/side_by_side.png"
echo "(The base model has random weights, so the pictures are patterns; what counts is that the LoRA changes them.)"
