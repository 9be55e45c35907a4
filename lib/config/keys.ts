/** The keys of a configuration, read off its schema. */
import { configJsonSchema } from "./write.ts";

interface Node {
  properties?: Record<string, Node>;
  anyOf?: Node[];
  allOf?: Node[];
}

/** Every key that holds a value, as `--set` takes it: `train.steps`. In the order of the schema. */
export function configKeys(): string[] {
  const walk = (node: Node, path: string): string[] => {
    const groups = [node, ...node.anyOf ?? [], ...node.allOf ?? []].flatMap(({ properties }) => properties ?? []);
    if (groups.length === 0) return [path];
    return groups.flatMap((properties) =>
      Object.entries(properties).flatMap(([key, below]) => walk(below, path === "" ? key : `${path}.${key}`))
    );
  };
  return walk(configJsonSchema() as Node, "");
}
