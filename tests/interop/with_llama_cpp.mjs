// What llama.cpp does with GGUF files. usage: node with_llama_cpp.mjs NODE_MODULES JOBS.json RESULTS.json
//
// NODE_MODULES holds node-llama-cpp with the prebuilt llama.cpp of this platform. One thread and fp32 keys and values, so that
// sums are not rounded to fp16.
import fs from "node:fs";
import path from "node:path";
import {pathToFileURL} from "node:url";

const [modules, jobsPath, resultsPath] = process.argv.slice(2);
const load = (name) => import(pathToFileURL(path.join(path.resolve(modules), name)).href);
const {getLlama} = await load("node-llama-cpp/dist/index.js");
const {Template} = await load("@huggingface/jinja/dist/index.js");

const llama = await getLlama({gpu: false, build: "never", logLevel: "error", maxThreads: 1});
const results = {};
for (const job of JSON.parse(fs.readFileSync(jobsPath, "utf8"))) {
    const model = await llama.loadModel({modelPath: job.path});
    const context = await model.createContext({
        contextSize: job.context,
        threads: 1,
        experimentalKvCacheKeyType: "F32",
        experimentalKvCacheValueType: "F32",
    });
    const sequence = context.getSequence();
    const greedy = [];
    for (const prompt of job.prompts) {
        await sequence.clearHistory();
        const ids = [];
        for await (const id of sequence.evaluate(prompt, {temperature: 0, yieldEogToken: true})) {
            ids.push(id);
            if (ids.length >= job.count)
                break;
        }
        greedy.push(ids);
    }
    const metadata = model.fileInfo.metadata;
    let chat = null;
    if (job.messages != null) {
        const template = new Template(metadata.tokenizer.chat_template);
        chat = [...model.tokenize(template.render({messages: job.messages, add_generation_prompt: true}), true)];
    }
    results[job.path] = {
        greedy,
        chat,
        ids: job.texts.map((text) => [...model.tokenize(text)]),
        begin: model.tokens.bos,
        end: model.tokens.eos,
        architecture: metadata.general.architecture,
    };
    await context.dispose();
    await model.dispose();
}
fs.writeFileSync(resultsPath, JSON.stringify(results));
process.exit(0);
