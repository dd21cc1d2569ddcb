// Images of an exported student in C++ with onnxruntime: sample FILE.onnx [NUM] [SEED] [LABEL ...] > grid.pgm (or .ppm)
//
//   g++ -std=c++17 -O2 sample.cpp -o sample -lonnxruntime
//
// Image i of seed s is image i of `fewstep sample --seed s` with the same labels, to a processor's rounding. Labels are
// classes of a class-conditional student, used in turn; by default all. Written by fewstep (Apache-2.0).

#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <iostream>
#include <random>
#include <string>
#include <vector>

// float32 torch.randn of a CPU generator: uniforms of 24 bits, Box-Muller over groups of 16.
static void normal(std::mt19937& bits, float* values, int64_t count) {
  auto draw = [&](float* out, int64_t n) {
    for (int64_t i = 0; i < n; i++) out[i] = (bits() & 0xFFFFFF) / 16777216.0f;
  };
  auto pairs = [](float* v) {
    for (int i = 0; i < 8; i++) {
      const double radius = std::sqrt(-2 * std::log(1.0 - v[i])), angle = 2 * M_PI * v[i + 8];
      v[i] = static_cast<float>(radius * std::cos(angle));
      v[i + 8] = static_cast<float>(radius * std::sin(angle));
    }
  };
  draw(values, count);
  for (int64_t i = 0; i + 16 <= count; i += 16) pairs(values + i);
  if (count % 16) {  // the last 16 are drawn again
    draw(values + count - 16, 16);
    pairs(values + count - 16);
  }
}

// How many classes a graph says that it has; 0: it is unconditional.
static int64_t classes_of(const Ort::Session& session, Ort::AllocatorWithDefaultOptions& allocator) {
  const auto facts = session.GetModelMetadata().LookupCustomMetadataMapAllocated("fewstep", allocator);
  const std::string text = facts ? facts.get() : "", key = "\"num_classes\":";
  const size_t at = text.find(key);
  return at == std::string::npos ? 0 : std::stoll(text.substr(at + key.size()));
}

int main(int argc, char** argv) try {
  if (argc < 2) throw std::runtime_error("usage: sample FILE.onnx [NUM] [SEED] [LABEL ...]");
  const int64_t num = argc > 2 ? std::stoll(argv[2]) : 16, seed = argc > 3 ? std::stoll(argv[3]) : 0;
  Ort::Env env(ORT_LOGGING_LEVEL_WARNING);
  Ort::Session session(env, argv[1], Ort::SessionOptions{});
  Ort::AllocatorWithDefaultOptions allocator;

  std::vector<int64_t> shape = session.GetInputTypeInfo(0).GetTensorTypeAndShapeInfo().GetShape();
  const int64_t channels = shape[1], height = shape[2], width = shape[3], size = channels * height * width;
  shape[0] = num;
  std::vector<std::string> names;
  for (size_t k = 0; k < session.GetInputCount(); k++)
    names.emplace_back(session.GetInputNameAllocated(k, allocator).get());
  const int64_t classes = classes_of(session, allocator);
  std::vector<int64_t> given, labels(num);  // those given or all, in turn
  for (int k = 4; k < argc; k++) given.push_back(std::stoll(argv[k]));
  const auto absent = [&](int64_t label) { return label < 0 || label >= classes; };
  if (std::any_of(given.begin(), given.end(), absent))
    throw std::runtime_error("labels: this student " + (classes
        ? "has the classes 0 to " + std::to_string(classes - 1) : std::string("is unconditional: leave labels out")));
  for (int64_t i = 0; i < num && classes; i++) labels[i] = given.empty() ? i % classes : given[i % given.size()];
  std::vector<std::vector<float>> noise(names.size() - (classes > 0), std::vector<float>(num * size));
  for (int64_t i = 0; i < num; i++) {
    std::mt19937 bits(static_cast<uint32_t>(seed * (1 << 20) + i));
    for (auto& each : noise) normal(bits, each.data() + i * size, size);
  }

  const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  std::vector<Ort::Value> inputs;
  std::vector<const char*> input_names;
  for (auto& each : noise)
    inputs.push_back(Ort::Value::CreateTensor<float>(memory, each.data(), each.size(), shape.data(), shape.size()));
  if (classes) inputs.push_back(Ort::Value::CreateTensor<int64_t>(memory, labels.data(), num, shape.data(), 1));
  for (const auto& name : names) input_names.push_back(name.c_str());
  const std::string output = session.GetOutputNameAllocated(0, allocator).get();
  const char* output_names[] = {output.c_str()};
  auto images = session.Run(Ort::RunOptions{}, input_names.data(), inputs.data(), inputs.size(), output_names, 1);
  const bool pixels = images[0].GetTensorTypeAndShapeInfo().GetElementType() == ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8;

  const int64_t side = static_cast<int64_t>(std::ceil(std::sqrt(num)));
  std::vector<uint8_t> grid(side * height * side * width * channels);
  for (int64_t i = 0; i < num * size; i++) {  // of either output, [B, H, W, C] or [B, C, H, W]
    const int64_t n = i / size, rest = i % size;
    const int64_t c = pixels ? rest % channels : rest / (height * width);
    const int64_t at = pixels ? rest / channels : rest % (height * width);
    const int64_t row = n / side * height + at / width, column = n % side * width + at % width;
    uint8_t& value = grid[(row * side * width + column) * channels + c];
    if (pixels) value = images[0].GetTensorData<uint8_t>()[i];
    else value = std::nearbyint(std::clamp(images[0].GetTensorData<float>()[i] * 127.5f + 127.5f, 0.0f, 255.0f));
  }
  std::cout << (channels == 1 ? "P5" : "P6") << "\n" << side * width << " " << side * height << "\n255\n";
  std::cout.write(reinterpret_cast<const char*>(grid.data()), grid.size());
} catch (const std::exception& error) {
  std::cerr << "sample: " << error.what() << "\n";
  return 1;
}
