/**
 * The commands in the order in which help shows them. A command is one line here and one module that exports `command`;
 * modules are loaded only when they are used, so that `metalora --help` starts at once.
 */
import type { Command } from "./command.ts";

/** A command that is not loaded yet. */
export interface CommandEntry {
  readonly name: string;
  /** As in the command itself. */
  readonly summary: string;
  load(): Promise<{ command: Command }>;
}

/** Every command. */
export const commands: readonly CommandEntry[] = [
  {
    name: "train",
    summary: "Fine-tune a model with LoRA, plain or guided by a validation set",
    load: () => import("./train.ts"),
  },
  {
    name: "retrain",
    summary: "Train again if anything changed, and publish what is not worse",
    load: () => import("./retrain.ts"),
  },
  { name: "report", summary: "Make the page of a run again from its folder", load: () => import("./report.ts") },
  { name: "eval", summary: "Measure the loss of a model, with or without an adapter", load: () => import("./eval.ts") },
  {
    name: "score",
    summary: "Compare every training sample with the validation set, without training",
    load: () => import("./score.ts"),
  },
  { name: "demo", summary: "See META-LORA beside plain LoRA on noisy data, in minutes", load: () => import("./demo.ts") },
  { name: "bench", summary: "Time training steps of a model shape with random weights", load: () => import("./bench.ts") },
  {
    name: "doctor",
    summary: "Show what this machine has for training and what is missing",
    load: () => import("./doctor.ts"),
  },
  { name: "preview", summary: "Show samples as the model will see them", load: () => import("./preview.ts") },
  { name: "config init", summary: "Write a commented configuration to start from", load: () => import("./config_init.ts") },
  {
    name: "config check",
    summary: "Check a configuration and show it with every default",
    load: () => import("./config_check.ts"),
  },
  { name: "config schema", summary: "Print the JSON Schema of configurations", load: () => import("./config_schema.ts") },
  {
    name: "completions",
    summary: "Print a script that lets a shell complete metalora's commands",
    load: () => import("./completions.ts"),
  },
];
