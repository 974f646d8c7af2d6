// What the page uses of onnxruntime-web.
declare module "*/vendor/ort.js" {
  export const env: { logLevel: string; wasm: { numThreads: number; wasmBinary: Uint8Array } };
  export class Tensor {
    constructor(type: string, data: Float32Array | BigInt64Array, shape: number[]);
    data: Float32Array;
  }
  export class InferenceSession {
    static create(graph: Uint8Array, options: { externalData: { path: string; data: Uint8Array }[] }): Promise<InferenceSession>;
    run(feeds: Record<string, Tensor>): Promise<Record<string, Tensor>>;
    release(): Promise<void>;
  }
}
