// Scores images with a package that gaia_fast wrote, det.export("model.pt2", x), without Python:
//   score model.pt2 images.f32 > scores.csv
// images.f32 holds (N, C, H, W) numbers and nothing else, prepared as the model wants them and in this machine's byte
// order: x.numpy().tofile("images.f32").
#include <ATen/ops/from_blob.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

// One entry of the metadata, a JSON object of strings. A quote within a string is escaped, so that "key": is found only
// where it is a key; the entries that are read here hold no quotes.
std::string entry(const std::string& metadata, const std::string& key) {
  const std::string start = "\"" + key + "\": \"";
  const size_t found = metadata.find(start);
  if (found == std::string::npos) throw std::runtime_error("has no '" + key + "': write it anew with det.export");
  return metadata.substr(found + start.size(), metadata.find('"', found + start.size()) - found - start.size());
}

// All images of a file. A package does not look at the sizes of what it is given: what does not fit must not get there.
at::Tensor read_images(const std::string& path, const std::string& shape) {
  long long c = 0, h = 0, w = 0, fixed = 0;
  if (std::sscanf(shape.c_str(), "[null, %lld, %lld, %lld]", &c, &h, &w) != 3 &&
      std::sscanf(shape.c_str(), "[%lld, %lld, %lld, %lld]", &fixed, &c, &h, &w) != 4) {
    throw std::runtime_error("takes images of " + shape + ", which are not (N, C, H, W)");
  }
  const long long size = std::filesystem::file_size(path), image = c * h * w * sizeof(float), n = size / image;
  if (n == 0 || size % image != 0 || (fixed != 0 && n != fixed)) {
    throw std::runtime_error("takes float32 images of " + shape + ", of " + std::to_string(image) +
                             " bytes each (null: one image or more), and " + path + " has " + std::to_string(size) +
                             " bytes; prepare images as for det.export");
  }
  at::Tensor images =
      at::from_blob(new float[n * c * h * w], {n, c, h, w}, [](void* data) { delete[] static_cast<float*>(data); });
  std::ifstream file(path, std::ios::binary);
  if (!file.read(static_cast<char*>(images.data_ptr()), size)) throw std::runtime_error("cannot read " + path);
  return images;
}

void score(const std::string& package, const std::string& path) {
  if (!std::filesystem::is_regular_file(package)) throw std::runtime_error("is no file");
  torch::inductor::AOTIModelPackageLoader model(package);
  auto found = model.get_metadata();
  const std::string metadata = found["gaia_fast"], threshold = entry(metadata, "threshold");
  if (found["AOTI_DEVICE_KEY"] != "cpu" || entry(metadata, "dtype") != "float32") {
    throw std::runtime_error("is not for float32 images on the CPU: export the model from there, in float32");
  }
  const std::vector<at::Tensor> outputs = model.run({read_images(path, entry(metadata, "images"))});
  const at::Tensor logits = outputs.at(0), scores = outputs.at(1), classes = logits.argmax(1);
  // A score that is NaN: the package cannot score this image, and so it does not say what the image is.
  const bool decides = !threshold.empty();
  const float limit = decides ? std::stof(threshold) : 0;
  std::printf("image,predicted,logit,score%s\n", decides ? ",is_ood" : "");
  for (int64_t i = 0; i < scores.size(0); ++i) {
    const long long image = i, top = classes[i].item<int64_t>();
    const float value = scores[i].item<float>();
    std::printf("%lld,%lld,%.9g,%.9g", image, top, logits[i][top].item<float>(), value);
    if (decides) std::printf(",%s", std::isnan(value) ? "" : value > limit ? "true" : "false");
    std::printf("\n");
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: score model.pt2 images.f32\n");
    return 2;
  }
  try {
    score(argv[1], argv[2]);
  } catch (const c10::Error& error) {  // without the stack that its what() ends in
    std::fprintf(stderr, "score: %s: %s\n", argv[1], error.what_without_backtrace());
    return 1;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "score: %s: %s\n", argv[1], error.what());
    return 1;
  }
  return 0;
}
