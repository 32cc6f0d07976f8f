// The calls of calls.json with one Node client: node node_calls.mjs CLIENT BASE_URL FOLDER, with the token in TOKEN.
// FOLDER has the client's packages. It prints one line of JSON for each call.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const [name, baseURL, folder] = process.argv.slice(2);
const token = process.env.TOKEN;
const AGENT = "Isabella";
const SIGNS = "größer, 日本語, 🐕 and “quotes”";
const SCHEMA = {
  type: "object",
  properties: { name: { type: "string" } },
  required: ["name"],
  additionalProperties: false,
};

const find = createRequire(`${folder}/package.json`);
const load = (module) => import(pathToFileURL(find.resolve(module)).href);
const user = (content) => [{ role: "user", content }];

class Missing extends Error {}

async function openai(key) {
  const { default: OpenAI } = await load("openai");
  const client = new OpenAI({ baseURL, apiKey: key, maxRetries: 0 });
  return {
    models: async () => (await client.models.list()).data.map((model) => model.id),
    model: async (id) => (await client.models.retrieve(id)).id,
    say: async (messages, { model = AGENT, ...options } = {}) => {
      const answer = await client.chat.completions.create({ model, messages, ...options });
      return [answer.choices[0].message.content, answer.usage.total_tokens];
    },
    pieces: async (messages) => {
      const texts = [];
      let total = 0;
      const options = { stream: true, stream_options: { include_usage: true } };
      for await (const chunk of await client.chat.completions.create({ model: AGENT, messages, ...options })) {
        texts.push(chunk.choices[0]?.delta.content ?? "");
        total = chunk.usage?.total_tokens ?? total;
      }
      return [texts, total];
    },
    respond: async (input) => {
      const whole = await client.responses.create({ model: AGENT, input });
      let streamed = "";
      for await (const event of await client.responses.create({ model: AGENT, input, stream: true })) {
        if (event.type === "response.output_text.delta") streamed += event.delta;
      }
      return [whole.output_text, streamed];
    },
  };
}

async function langchain(key) {
  const { ChatOpenAI } = await load("@langchain/openai");
  const chat = ({ model = AGENT, max_tokens: maxTokens, seed, stop, ...options } = {}) =>
    new ChatOpenAI({
      model,
      apiKey: key,
      configuration: { baseURL },
      maxRetries: 0,
      ...(maxTokens && { maxTokens }),
      ...(stop && { stop }),
      modelKwargs: seed === undefined ? {} : { seed },
      ...options,
    });
  return {
    models: async () => { throw new Missing(); },
    model: async () => { throw new Missing(); },
    say: async (messages, { response_format: format, tools, ...options } = {}) => {
      if (format?.type === "json_schema") {
        const model = chat(options).withStructuredOutput(SCHEMA, { name: "dog", method: "jsonSchema" });
        return [JSON.stringify(await model.invoke(messages)), 1];
      }
      const model = format ? chat(options).withConfig({ response_format: format }) : chat(options);
      const answer = await (tools ? model.bindTools(tools) : model).invoke(messages);
      return [answer.content, answer.usage_metadata.total_tokens];
    },
    pieces: async (messages) => {
      const texts = [];
      let total = 0;
      for await (const chunk of await chat({ streamUsage: true }).stream(messages)) {
        texts.push(chunk.content);
        total = chunk.usage_metadata?.total_tokens ?? total;
      }
      return [texts, total];
    },
    respond: async (input) => {
      let streamed = "";
      for await (const chunk of await chat({ useResponsesApi: true }).stream(input)) streamed += chunk.text;
      return [(await chat({ useResponsesApi: true }).invoke(input)).text, streamed];
    },
  };
}

async function vercel(key, chat, responses) {
  const { generateText, streamText, jsonSchema, tool, Output } = await load("ai");
  const fields = ({ model = AGENT, response_format: format, tools, max_tokens, stop, ...options } = {}) => ({
    model: chat(key)(model),
    maxRetries: 0,
    ...options,
    ...(max_tokens && { maxOutputTokens: max_tokens }),
    ...(stop && { stopSequences: stop }),
    ...(tools && { tools: { weather: tool({ inputSchema: jsonSchema(tools[0].function.parameters) }) } }),
    ...(format?.type === "json_schema" && { output: Output.object({ schema: jsonSchema(SCHEMA) }) }),
    ...(format?.type === "json_object" && { output: Output.json() }),
  });
  const failed = (error) => {
    throw error;
  };
  return {
    models: async () => { throw new Missing(); },
    model: async () => { throw new Missing(); },
    say: async (messages, options) => {
      const system = messages.filter((message) => message.role === "system").map((message) => message.content);
      const others = messages.filter((message) => message.role !== "system");
      const wanted = { ...fields(options), messages: others, ...(system.length && { system: system.join("\n") }) };
      const answer = await generateText(wanted);
      return [wanted.output ? JSON.stringify(answer.output) : answer.text, answer.usage.totalTokens];
    },
    pieces: async (messages) => {
      const texts = [];
      const answer = streamText({ ...fields(), messages, onError: ({ error }) => failed(error) });
      for await (const text of answer.textStream) texts.push(text);
      return [texts, (await answer.usage).totalTokens];
    },
    respond: async (prompt) => {
      if (!responses) throw new Missing();
      const model = responses(key)(AGENT);
      const whole = await generateText({ model, prompt, maxRetries: 0 });
      let streamed = "";
      for await (const text of streamText({ model, prompt, maxRetries: 0 }).textStream) streamed += text;
      return [whole.text, streamed];
    },
  };
}

async function open(key) {
  if (name === "openai-node") return openai(key);
  if (name === "@langchain/openai") return langchain(key);
  if (name === "@ai-sdk/openai") {
    const { createOpenAI } = await load("@ai-sdk/openai");
    const provider = (apiKey) => createOpenAI({ baseURL, apiKey });
    return vercel(key, (apiKey) => provider(apiKey).chat, (apiKey) => provider(apiKey).responses);
  }
  const { createOpenAICompatible } = await load("@ai-sdk/openai-compatible");
  const provider = (apiKey) =>
    createOpenAICompatible({ name: "isabella", baseURL, apiKey, includeUsage: true, supportsStructuredOutputs: true });
  return vercel(key, (apiKey) => provider(apiKey).chatModel, null);
}

async function status(call) {
  try {
    await call();
  } catch (error) {
    return error.status ?? error.statusCode;
  }
  return undefined;
}

const client = await open(token);
const calls = {
  models: async () => [AGENT, `${AGENT}:aside`].every(((ids) => (id) => ids.includes(id))(await client.models())),
  model: async () => (await client.model(AGENT)) === AGENT,
  say: async () => (await client.say(user("Say good morning")))[0] === "good morning",
  usage: async () => (await client.say(user("Say hello")))[1] > 0,
  stream: async () => {
    const [texts] = await client.pieces(user("Count to 5"));
    return texts.join("") === "1 2 3 4 5" && texts.filter(Boolean).length > 3;
  },
  stream_usage: async () => (await client.pieces(user("Say hello")))[1] > 0,
  parts: async () => {
    const parts = [{ type: "text", text: "Say " }, { type: "text", text: "good night" }];
    return (await client.say(user(parts)))[0].includes("good night");
  },
  copy: async () => {
    const before = [
      { role: "system", content: "Say nothing but no." },
      { role: "user", content: "Say one" },
      { role: "assistant", content: "one" },
    ];
    return (await client.say([...before, ...user("Say two")]))[0] === "two";
  },
  remember: async () => /remember|know/.test((await client.say(user("Remember that my boat is called Albatross.")))[0]),
  recall: async () => (await client.say(user("What is my boat called?")))[0].includes("Albatross"),
  unicode: async () => (await client.say(user(`Say ${SIGNS}`)))[0] === SIGNS,
  options: async () => (await client.say(user("Say hello"), { temperature: 0.3, max_tokens: 100, seed: 7 }))[0] === "hello",
  tools: async () => {
    const parameters = { type: "object", properties: {} };
    const tools = [{ type: "function", function: { name: "weather", description: "The weather.", parameters } }];
    return (await client.say(user("Say hello"), { tools }))[0] === "hello";
  },
  json_object: async () => {
    const [text] = await client.say(user('Say {"n": 1}'), { response_format: { type: "json_object" } });
    return JSON.parse(text).n === 1;
  },
  json_schema: async () => {
    const response_format = { type: "json_schema", json_schema: { name: "dog", schema: SCHEMA, strict: true } };
    const [text] = await client.say(user('Say {"name": "Rex"}'), { response_format });
    return JSON.parse(text).name === "Rex";
  },
  stop: async () => (await client.say(user("Count to 9"), { stop: [" 5"] }))[0].trim() === "1 2 3 4",
  unknown: async () => (await status(() => client.say(user("Say hello"), { model: "nobody" }))) === 404,
  key: async () => {
    const stranger = await open("not-the-token-of-this-backend");
    return (await status(() => stranger.say(user("Say hello")))) === 401;
  },
  aside: async () => (await client.say(user("Say good night"), { model: `${AGENT}:aside` }))[0] === "good night",
  responses: async () => (await client.respond("Say good day")).every((text) => text === "good day"),
};

for (const [call] of JSON.parse(readFileSync(new URL("calls.json", import.meta.url), "utf8"))) {
  let outcome = "no";
  let note = "";
  try {
    outcome = (await calls[call]()) ? "yes" : "no";
  } catch (error) {
    outcome = error instanceof Missing ? "none" : "no";
    note = error instanceof Missing ? "" : `${error.name}: ${error.message}`.slice(0, 500);
  }
  console.log(JSON.stringify({ call, outcome, note }));
}
