/**
 * LoRA adapters in the format of Hugging Face PEFT: `adapter_config.json` and `adapter_model.safetensors`.
 *
 * @module
 */

import { join } from "node:path";
import { refusalOf, UserError } from "../errors.ts";
import { readRegularFile, unreadable, within } from "../files.ts";
import { Fields } from "../model/fields.ts";
import { writeAll, writeFileAtomic, writeFolderAtomic } from "../tensor/atomic.ts";
import { toFloat32 } from "../tensor/dtypes.ts";
import { openSafetensors, type SafetensorsFile, type TensorData, writeSafetensors } from "../tensor/safetensors.ts";

/** One adapted matrix: y += scale · (x Aᵀ) Bᵀ, scale = alpha / rank (alpha / √rank with rslora). */
export interface PeftModule {
  /** Name of the linear layer in the model: "model.layers.0.self_attn.q_proj". */
  readonly name: string;
  /** [r, in] */
  readonly A: Float32Array;
  /** [out, r] */
  readonly B: Float32Array;
  /** r of this matrix, the adapter's `rank` when omitted. */
  readonly rank?: number;
  /** alpha of this matrix, the adapter's `alpha` when omitted. */
  readonly alpha?: number;
}

/** What {@linkcode writePeftAdapter} writes. */
export interface PeftAdapter {
  /** Name or path of the base model. */
  readonly model: string;
  readonly rank: number;
  readonly alpha: number;
  readonly rslora: boolean;
  /** Suffixes of the adapted layers' names: "q_proj", … */
  readonly targets: readonly string[];
  readonly modules: readonly PeftModule[];
  /** Dropout that was trained with; 0 when omitted. PEFT applies it in training only. */
  readonly dropout?: number;
}

/** What {@linkcode readPeftAdapter} returns: all sizes known. */
export interface LoadedPeftAdapter extends PeftAdapter {
  readonly dropout: number;
  readonly modules: readonly (Required<PeftModule> & { readonly inFeatures: number; readonly outFeatures: number })[];
}

const CONFIG = "adapter_config.json";
const WEIGHTS = "adapter_model.safetensors";
const PREFIX = "base_model.model.";

/**
 * Writes an adapter folder that is complete or absent; `PeftModel.from_pretrained` loads it with no key missing or left over.
 *
 * @param dir Folder, replaced when it exists.
 * @param adapter Settings and matrices.
 * @throws {RangeError} When sizes contradict the ranks, or a module's name ends in none of the targets.
 * @throws {UserError} When the folder cannot be written.
 */
export function writePeftAdapter(dir: string, adapter: PeftAdapter): void {
  const tensors: TensorData[] = [];
  const rankPattern: Record<string, number> = {};
  const alphaPattern: Record<string, number> = {};
  for (const module of adapter.modules) {
    const { name, A, B, rank = adapter.rank, alpha = adapter.alpha } = module;
    if (
      !Number.isInteger(rank) || rank < 1 || A.length === 0 || A.length % rank !== 0 || B.length === 0 || B.length % rank !== 0
    ) {
      throw new RangeError(`Cannot write the adapter of ${name}: A has ${A.length} and B ${B.length} numbers, rank is ${rank}`);
    }
    if (!adapter.targets.some((target) => name === target || name.endsWith(`.${target}`))) {
      throw new RangeError(`Cannot write the adapter of ${name}: it ends in none of the targets ${adapter.targets.join(", ")}`);
    }
    // PEFT takes the keys as regular expressions for the end of the name.
    if (rank !== adapter.rank) rankPattern[name.replaceAll(".", "\\.")] = rank;
    if (alpha !== adapter.alpha) alphaPattern[name.replaceAll(".", "\\.")] = alpha;
    tensors.push(
      { name: `${PREFIX}${name}.lora_A.weight`, dtype: "F32", shape: [rank, A.length / rank], data: bytesOf(A) },
      { name: `${PREFIX}${name}.lora_B.weight`, dtype: "F32", shape: [B.length / rank, rank], data: bytesOf(B) },
    );
  }
  const config = JSON.stringify(peftConfig(adapter, rankPattern, alphaPattern), null, 2) + "\n";
  writeFolderAtomic(dir, (folder) => {
    writeFileAtomic(join(folder, CONFIG), (file) => writeAll(file, new TextEncoder().encode(config)));
    writeSafetensors(join(folder, WEIGHTS), tensors, { format: "pt" });
  });
}

/** The fields that PEFT's LoraConfig has had since 0.10, so that older versions load the file without complaint, too. */
function peftConfig(a: PeftAdapter, rankPattern: Record<string, number>, alphaPattern: Record<string, number>) {
  return {
    alpha_pattern: alphaPattern,
    auto_mapping: null,
    base_model_name_or_path: a.model,
    bias: "none",
    fan_in_fan_out: false,
    inference_mode: true,
    init_lora_weights: true,
    layer_replication: null,
    layers_pattern: null,
    layers_to_transform: null,
    loftq_config: {},
    lora_alpha: a.alpha,
    lora_dropout: a.dropout ?? 0,
    megatron_config: null,
    megatron_core: "megatron.core",
    modules_to_save: null,
    peft_type: "LORA",
    r: a.rank,
    rank_pattern: rankPattern,
    revision: null,
    target_modules: [...a.targets],
    task_type: "CAUSAL_LM",
    use_dora: false,
    use_rslora: a.rslora,
  };
}

/**
 * Reads an adapter folder written by PEFT or by {@linkcode writePeftAdapter}.
 *
 * @param dir Folder with `adapter_config.json` and `adapter_model.safetensors`.
 * @returns Settings, and every matrix widened to f32 with its rank and alpha.
 * @throws {UserError} When something is missing, damaged, contradictory, or of a kind that is not supported (DoRA, biases, …).
 */
export function readPeftAdapter(dir: string): LoadedPeftAdapter {
  const config = readConfig(within(dir, CONFIG));
  const rank = config.positive("r");
  const alpha = config.number("lora_alpha");
  const ranks = patterns(config, "rank_pattern");
  const alphas = patterns(config, "alpha_pattern");
  using file = openSafetensors(within(dir, WEIGHTS));
  const modules = [...moduleNames(file)].map((name) => {
    const A = matrix(file, name, "A");
    const B = matrix(file, name, "B");
    const r = match(ranks, name) ?? rank;
    if (A.rows !== r || B.columns !== r) {
      bad(file, `${name} has A [${A.rows}, ${A.columns}] and B [${B.rows}, ${B.columns}], but ${CONFIG} gives it the rank ${r}`);
    }
    const sizes = { inFeatures: A.columns, outFeatures: B.rows };
    return { name, rank: r, alpha: match(alphas, name) ?? alpha, A: A.data, B: B.data, ...sizes };
  });
  if (modules.length === 0) bad(file, "it has no LoRA matrices");
  return {
    model: config.string("base_model_name_or_path", ""),
    rank,
    alpha,
    rslora: config.boolean("use_rslora", { default: false }),
    dropout: config.number("lora_dropout", 0),
    // PEFT also allows one regular expression; the names in the file say the same more plainly.
    targets: [...new Set(modules.map(({ name }) => name.slice(name.lastIndexOf(".") + 1)))],
    modules,
  };
}

/**
 * Looks at an adapter folder without reading its matrices.
 *
 * @param dir Folder with `adapter_config.json` and `adapter_model.safetensors`.
 * @returns Such as "adapter_config.json is missing or damaged"; null: both can be read, and the weights are as long as their header says.
 */
export function peftDamage(dir: string): string | null {
  const looks: [name: string, look: (path: string) => unknown][] = [
    [CONFIG, readConfig],
    [WEIGHTS, (path) => openSafetensors(path)[Symbol.dispose]()],
  ];
  const bad = looks.find(([name, look]) => refusalOf(() => look(within(dir, name))) !== null);
  return bad === undefined ? null : `${bad[0]} is missing or damaged`;
}

function readConfig(path: string): Fields {
  let value: unknown;
  try {
    value = JSON.parse(readRegularFile(path));
  } catch (error) {
    throw new UserError(`Cannot read the adapter ${path}: ${unreadable(error, "Name a folder that holds a PEFT adapter")}`, 2);
  }
  const config = Fields.of(path, value);
  const type = config.string("peft_type");
  if (type !== "LORA") config.refuse(`peft_type is ${JSON.stringify(type)}`, 'Only "LORA" is supported');
  if (config.string("bias", "none") !== "none") config.refuse(`bias is "${config.string("bias")}"`, 'Only "none" is supported');
  for (const key of ["use_dora", "lora_bias", "fan_in_fan_out"]) {
    if (config.boolean(key, { default: false })) config.refuse(`${key} is true`, "It is not supported");
  }
  for (const key of ["modules_to_save", "layer_replication", "trainable_token_indices", "target_parameters"]) {
    if (config.has(key)) config.refuse(`${key} is set`, "It is not supported");
  }
  return config;
}

/** `rank_pattern` or `alpha_pattern`: expressions for the end of a name, with a number each. */
function patterns(config: Fields, key: string): [RegExp, number][] {
  const values = Fields.of(config.path, config.raw(key) ?? {}, `${key}.`);
  return Object.keys(values.values).map((pattern) => {
    try {
      return [new RegExp(`^(?:.*\\.)?(?:${pattern})$`), values.number(pattern)];
    } catch (error) {
      if (error instanceof UserError) throw error;
      return config.refuse(`${key} has ${JSON.stringify(pattern)}, which is no regular expression`, "Correct it");
    }
  });
}

/** The first pattern that fits, as PEFT takes it. */
function match(list: [RegExp, number][], name: string): number | undefined {
  return list.find(([pattern]) => pattern.test(name))?.[1];
}

function moduleNames(file: SafetensorsFile): Set<string> {
  const names = new Set<string>();
  for (const key of file.tensors.keys()) {
    const name = /^base_model\.model\.(.+)\.lora_[AB]\.weight$/.exec(key)?.[1];
    names.add(name ?? bad(file, `the tensor "${key}" is no LoRA matrix of a linear layer`));
  }
  return names;
}

function matrix(file: SafetensorsFile, module: string, letter: "A" | "B") {
  const name = `${PREFIX}${module}.lora_${letter}.weight`;
  const info = file.tensors.get(name) ?? bad(file, `${module} has no lora_${letter}.weight`);
  const [rows, columns] = info.shape;
  if (info.shape.length !== 2 || rows === undefined || columns === undefined || info.bytes === 0) {
    return bad(file, `"${name}" has the shape [${info.shape}] instead of two dimensions`);
  }
  if (!["F32", "BF16", "F16"].includes(info.dtype)) {
    return bad(file, `"${name}" is stored as ${info.dtype}, not as F32, BF16 or F16`);
  }
  const bytes = new Uint8Array(info.bytes);
  file.read(name, bytes);
  return { rows, columns, data: toFloat32(info.dtype, bytes) };
}

function bad(file: SafetensorsFile, what: string): never {
  throw new UserError(`Cannot read the adapter ${file.path}: ${what}. Name a folder that holds a PEFT LoRA adapter`, 2);
}

function bytesOf(numbers: Float32Array): Uint8Array {
  return new Uint8Array(numbers.buffer, numbers.byteOffset, numbers.byteLength);
}
