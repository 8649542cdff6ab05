/**
 * What a consumer is asked to do, the same in Node and in a page: load one model file with Transformers.js, generate
 * greedily, and hand back tokens together with the highest logits of every step. Whoever asked compares.
 */

/** Highest logits kept for each step. */
const TOP = 8;

/** The `TOP` largest entries of `row`, largest first: [[index, value], ...]. */
function highest(row) {
  const best = [];
  for (let index = 0; index < row.length; index += 1) {
    const value = row[index];
    if (best.length === TOP && !(value > best[TOP - 1][1])) continue;
    let place = best.length;
    while (place > 0 && value > best[place - 1][1]) place -= 1;
    best.splice(place, 0, [index, value]);
    if (best.length > TOP) best.pop();
  }
  return best;
}

/** A logits processor that changes nothing and remembers the best tokens of every row at every step. */
function recorder(transformers) {
  class Recorder extends transformers.LogitsProcessor {
    steps = [];

    _call(_tokens, logits) {
      const [rows, vocabulary] = logits.dims;
      const step = [];
      for (let row = 0; row < rows; row += 1) {
        step.push(highest(logits.data.subarray(row * vocabulary, (row + 1) * vocabulary)));
      }
      this.steps.push(step);
      return logits;
    }
  }
  return new Recorder();
}

const numbers = (values) => Array.from(values, Number);

/**
 * Generate from `inputs`: per row the new tokens, and what the recorder saw.
 *
 * @param options {max_new_tokens, penalty: keep the repetition penalty that generation_config.json asks for}
 */
async function generate(transformers, model, inputs, options) {
  const seen = recorder(transformers);
  const processors = new transformers.LogitsProcessorList();
  processors.push(seen);
  const started = performance.now();
  const sequences = await model.generate({
    ...inputs,
    max_new_tokens: options.max_new_tokens,
    do_sample: false,
    ...(options.penalty ? {} : { repetition_penalty: 1.0 }),
    logits_processor: processors,
  });
  const seconds = (performance.now() - started) / 1000;
  const [, width] = inputs.input_ids.dims;
  const rows = sequences.tolist().map((row) => numbers(row.slice(width)));
  return { rows, steps: seen.steps, seconds };
}

function tokenize(tokenizer, prompt) {
  if (prompt.messages === undefined) return tokenizer(prompt.text);
  return tokenizer.apply_chat_template(prompt.messages, {
    ...(prompt.tools ? { tools: prompt.tools } : {}),
    add_generation_prompt: true,
    return_dict: true,
  });
}

/** The prompts in `texts` as one batch padded on the left; and, where `options.alone`, each of them by itself. */
async function padded(transformers, tokenizer, model, texts, options) {
  tokenizer.padding_side = "left";
  const batch = tokenizer(texts, { padding: true });
  const together = await generate(transformers, model, batch, options);
  const rows = [];
  for (let row = 0; row < texts.length; row += 1) {
    const alone = options.alone ? await generate(transformers, model, tokenizer([texts[row]]), options) : null;
    rows.push({
      limit: options.max_new_tokens,
      text: texts[row],
      pads: numbers(batch.attention_mask.tolist()[row]).filter((bit) => bit === 0).length,
      tokens: together.rows[row],
      top: together.steps.map((step) => step[row]),
      alone: alone && { tokens: alone.rows[0], top: alone.steps.map((step) => step[0]) },
    });
  }
  return rows;
}

/** What the machine offers: the GPU's name and whether it computes in float16; null without WebGPU. */
export async function adapterFacts(gpu) {
  const adapter = await gpu?.requestAdapter();
  if (!adapter) return null;
  const { vendor = "", architecture = "", description = "" } = adapter.info ?? {};
  return { vendor, architecture, description, float16: adapter.features.has("shader-f16") };
}

/**
 * Load one model file and run everything in `job`.
 *
 * @param transformers the module `@huggingface/transformers`, its `env` already pointing to the files
 * @param job {model, dtype (null: the library's own choice), device, prompts, batch, alone, max_new_tokens}; a prompt has a
 *   name, text or messages (and tools), and may have a max_new_tokens and a penalty of its own
 */
export async function runJob(transformers, job) {
  const started = performance.now();
  const tokenizer = await transformers.AutoTokenizer.from_pretrained(job.model);
  const model = await transformers.AutoModelForCausalLM.from_pretrained(job.model, {
    ...(job.dtype === null ? {} : { dtype: job.dtype }),
    ...(job.device === null ? {} : { device: job.device }),
  });
  const result = {
    version: transformers.env.version,
    load_seconds: (performance.now() - started) / 1000,
    runs: [],
    batch: [],
  };
  try {
    for (const prompt of job.prompts) {
      const inputs = tokenize(tokenizer, prompt);
      const options = { max_new_tokens: prompt.max_new_tokens ?? job.max_new_tokens, penalty: prompt.penalty };
      const { rows, steps, seconds } = await generate(transformers, model, inputs, options);
      result.runs.push({
        name: prompt.name,
        input_ids: numbers(inputs.input_ids.tolist()[0]),
        limit: options.max_new_tokens,
        tokens: rows[0],
        text: tokenizer.decode(rows[0], { skip_special_tokens: true }),
        top: steps.map((step) => step[0]),
        seconds,
      });
    }
    if (job.batch.length > 0) {
      const options = { max_new_tokens: job.max_new_tokens, penalty: false, alone: job.alone };
      result.batch = await padded(transformers, tokenizer, model, job.batch, options);
    }
  } finally {
    await model.dispose();
  }
  return result;
}

/** `count` tokens below `vocabulary`, the same ones for the same `count`: the time of a step does not depend on which. */
function someTokens(transformers, count, vocabulary) {
  let state = count;
  const ids = new BigInt64Array(count);
  for (let place = 0; place < count; place += 1) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    ids[place] = BigInt(state % vocabulary);
  }
  const tensor = (data) => new transformers.Tensor("int64", data, [1, count]);
  return { input_ids: tensor(ids), attention_mask: tensor(new BigInt64Array(count).fill(1n)) };
}

/** Seconds to the first token after a prompt of `context` tokens, and of the `decoded` tokens after that one. */
async function timedRun(transformers, model, { context, decoded, vocabulary }) {
  const times = [];
  class Clock extends transformers.LogitsProcessor {
    _call(_tokens, logits) {
      times.push(performance.now());
      return logits;
    }
  }
  const processors = new transformers.LogitsProcessorList();
  processors.push(new Clock());
  const inputs = someTokens(transformers, context, vocabulary);
  const count = decoded + 1;
  const started = performance.now();
  await model.generate({
    ...inputs,
    min_new_tokens: count, // random tokens may lead to the end of the text
    max_new_tokens: count,
    do_sample: false,
    repetition_penalty: 1.0,
    logits_processor: processors,
  });
  if (times.length !== count) throw new Error(`${times.length} tokens were made, expected ${count}`);
  return {
    context,
    decoded,
    first_token_seconds: (times[0] - started) / 1000,
    decode_seconds: (times.at(-1) - times[0]) / 1000,
  };
}

/**
 * Measure one model file: load it, then prompt and decode at each context, `repeats` times.
 *
 * @param job {model, dtype, device, threads, contexts, repeats, decoded, vocabulary}
 * @param memory tells {resident, peak} of the process in bytes, null for what it does not know
 */
export async function runBench(transformers, job, memory) {
  const before = await memory();
  const started = performance.now();
  const model = await transformers.AutoModelForCausalLM.from_pretrained(job.model, {
    dtype: job.dtype,
    device: job.device,
    session_options: { intraOpNumThreads: job.threads }, // of Node; a page sets them for all of wasm
  });
  const seconds = (performance.now() - started) / 1000;
  const after = await memory();
  const runs = [];
  try {
    // Pages compile their kernels at the first steps.
    await timedRun(transformers, model, { ...job, context: Math.min(8, job.contexts[0] ?? 8), decoded: 2 });
    for (const context of job.contexts) {
      for (let repeat = 0; repeat < job.repeats; repeat += 1) {
        const run = await timedRun(transformers, model, { ...job, context });
        runs.push({ ...run, peak_resident: (await memory()).peak, peak_anonymous: null });
      }
    }
  } finally {
    await model.dispose();
  }
  const loaded = { seconds, base_resident: before.resident, loaded_resident: after.resident, loaded_anonymous: null };
  return { loaded, runs };
}

/** The source of an example with the name of the model in it, as a literal, in place of the card's. */
export function withModel({ source, place }, model) {
  return source.replaceAll(JSON.stringify(place), () => JSON.stringify(model));
}

/**
 * Run an example of the model card. `source` is the example as the card has it, but for the model's place; `names` are
 * the constants of it that are wanted back. `load` makes a module of the text.
 */
export async function runExample({ source, names }, load) {
  const module = await load(`${source}\nexport { ${names.join(", ")} };\n`);
  return Object.fromEntries(names.map((name) => [name, plain(module[name])]));
}

/** A value of an example as JSON can hold it; tensors become lists of numbers. */
function plain(value) {
  if (typeof value?.tolist === "function") return value.tolist().map((row) => numbers(row));
  return JSON.parse(JSON.stringify(value));
}
