#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "bindings/bindings.h"

namespace py = pybind11;

namespace gaia {
namespace {

// An owned reference, or none; an exception of Python's becomes none.
class Result {
 public:
  explicit Result(PyObject* object) : object_(object) {
    if (object_ == nullptr) PyErr_Clear();
  }
  Result(const Result&) = delete;
  Result& operator=(const Result&) = delete;
  ~Result() { Py_XDECREF(object_); }

  bool is(PyObject* expected) const { return object_ == expected; }

  bool equals(uint64_t expected) const {
    if (object_ == nullptr || !PyLong_CheckExact(object_)) return false;
    const uint64_t value = PyLong_AsUnsignedLongLongMask(object_);
    return value == expected;
  }

  bool equals(const int64_t* expected, Py_ssize_t size) const {
    if (object_ == nullptr || !PyTuple_Check(object_) || PyTuple_GET_SIZE(object_) != size) return false;
    for (Py_ssize_t i = 0; i < size; ++i) {
      PyObject* const item = PyTuple_GET_ITEM(object_, i);
      if (!PyLong_Check(item) || PyLong_AsLongLong(item) != expected[i]) return false;
    }
    return true;
  }

 private:
  PyObject* object_;
};

PyObject* call(py::handle method, PyObject* self) { return PyObject_CallOneArg(method.ptr(), self); }

// A descriptor written in C, as PyTorch's properties are: asked at once, without a look through the classes.
PyObject* get(py::handle property, PyObject* self) {
  return Py_TYPE(property.ptr())->tp_descr_get(property.ptr(), self, reinterpret_cast<PyObject*>(Py_TYPE(self)));
}

// What PyTorch's C interface tells of a tensor, without an object of Python's. A handle is the address of a pointer to
// the tensor's implementation, and of what is returned sizes and strides stay the tensor's.
struct TensorInterface {
  using Pointers = int32_t (*)(void* handle, void** out);
  using Sizes = int32_t (*)(void* handle, int64_t** out);
  using Number = int32_t (*)(void* handle, int64_t* out);
  using Type = int32_t (*)(void* handle, int32_t* out);
  Pointers data_ptr;
  Number dim, storage_size;
  Sizes sizes, strides;
  Type dtype;

  // Addresses in the order of the members; none where the interface is not there.
  explicit TensorInterface(const py::tuple& functions) : data_ptr(nullptr) {
    if (functions.size() != 6) return;
    const auto at = [&](size_t i) { return functions[i].cast<uintptr_t>(); };
    data_ptr = reinterpret_cast<Pointers>(at(0));
    dim = reinterpret_cast<Number>(at(1));
    storage_size = reinterpret_cast<Number>(at(2));
    sizes = reinterpret_cast<Sizes>(at(3));
    strides = reinterpret_cast<Sizes>(at(4));
    dtype = reinterpret_cast<Type>(at(5));
  }
  explicit operator bool() const { return data_ptr != nullptr; }
};

void fetch(const void* address, int lines = 1) {
  for (int i = 0; i < lines; ++i) __builtin_prefetch(static_cast<const char*>(address) + 64 * i);
}

// What a fingerprint watches, by pointer: the caller keeps every object alive as long as this. The time it takes is
// that of fetching what lies all over memory, so its own notes lie in a row, and what comes next is fetched ahead.
class Watch {
 public:
  // objects: (object, class, its __dict__). tables: (dictionary or class, [(key, value)], node), items: (list or
  // function, what it holds, node); `anything` is a value that does not matter, or none, and a node is asked where
  // something is another object. values: (tensor, version or -1, address, shape, strides, dtype, storage, its bytes,
  // [(offset, bytes)] to compare, where PyTorch has the tensor and the storage). expected: the address of
  // what stood there, one after the other. getters: of PyTorch's classes, in the order of the members below, and
  // functions: the addresses of PyTorch's that tell the same of a tensor, in the order of TensorInterface; a tensor of
  // which they do not is asked by the getters. left_out: names that do not matter in classes.
  Watch(const py::list& objects, const py::list& tables, const py::list& items, const py::list& values,
        uintptr_t expected, const py::tuple& getters, const py::tuple& functions, py::handle anything,
        const py::tuple& left_out)
      : version_(getters[0]),
        data_ptr_(getters[1]),
        shape_(getters[2]),
        stride_(getters[3]),
        dtype_(getters[4]),
        storage_nbytes_(getters[5]),
        cdata_(getters[6]),
        interface_(functions),
        anything_(anything.ptr()),
        expected_(reinterpret_cast<const char*>(expected)) {
    for (const auto& each : left_out) left_out_.push_back(pointer(each));
    for (const auto& each : objects) {
      const auto parts = each.cast<py::tuple>();
      objects_.push_back({pointer(parts[0]), pointer(parts[1]), pointer(parts[2])});
    }
    for (const auto& each : tables) {
      const auto parts = each.cast<py::tuple>();
      const auto pairs = parts[1].cast<py::list>();
      tables_.push_back({pointer(parts[0]), pointer(parts[2]), static_cast<Py_ssize_t>(pairs.size())});
      for (const auto& entry : pairs) {
        const auto pair = entry.cast<py::tuple>();
        entries_.push_back({pointer(pair[0]), pointer(pair[1])});
      }
    }
    for (const auto& each : items) {
      const auto parts = each.cast<py::tuple>();
      const auto held = parts[1].cast<py::tuple>();
      items_.push_back({pointer(parts[0]), pointer(parts[2]), static_cast<Py_ssize_t>(held.size())});
      for (const auto& item : held) contents_.push_back(pointer(item));
    }
    for (const auto& each : values) {
      const auto parts = each.cast<py::tuple>();
      const auto pieces = parts[8].cast<py::list>();
      const auto add_sizes = [&](const py::tuple& sizes) {
        for (const auto& size : sizes) sizes_.push_back(size.cast<int64_t>());
        return static_cast<Py_ssize_t>(sizes.size());
      };
      tensors_.push_back({pointer(parts[0]), parts[1].cast<int64_t>(), parts[2].cast<uint64_t>(),
                          add_sizes(parts[3].cast<py::tuple>()), pointer(parts[5]), pointer(parts[6]),
                          parts[7].cast<uint64_t>(), pieces.size(), parts[9].cast<uint64_t>(),
                          parts[10].cast<uint64_t>(), 0, false});
      add_sizes(parts[4].cast<py::tuple>());
      Tensor& tensor = tensors_.back();
      if (interface_ && tensor.pieces > 0) {
        const int64_t* const sizes = sizes_.data() + sizes_.size() - 2 * tensor.dimensions;
        tensor.by_interface = interface_.dtype(&tensor.at, &tensor.type) == 0 && interface_holds(tensor, sizes);
      }
      for (const auto& piece : pieces) {
        const auto where = piece.cast<py::tuple>();
        pieces_.push_back({where[0].cast<size_t>(), where[1].cast<size_t>()});
      }
    }
  }

  // How often a node was asked.
  int64_t asked() const { return asked_; }

  // Nothing of Python's runs in between but nodes, so the interpreter lock keeps other threads away.
  bool unchanged() const {
    for (size_t i = 0; i < objects_.size(); ++i) {
      if (i + kFarAhead < objects_.size()) fetch(objects_[i + kFarAhead].held);
      const Object& each = objects_[i];
      if (reinterpret_cast<PyObject*>(Py_TYPE(each.held)) != each.kind) return false;
      if (!Result(PyObject_GetAttr(each.held, attributes_name_.ptr())).is(each.attributes)) return false;
    }
    const Entry* entries = entries_.data();
    for (size_t i = 0; i < tables_.size(); ++i) {
      if (i + kFarAhead < tables_.size()) fetch(tables_[i + kFarAhead].held);
      if (i + kAhead < tables_.size()) fetch_entries(tables_[i + kAhead]);
      if (!same(tables_[i], entries) && !holds(tables_[i].node)) return false;
      entries += tables_[i].size;
    }
    PyObject* const* contents = contents_.data();
    for (const Items& each : items_) {
      if (!same(each, contents) && !holds(each.node)) return false;
      contents += each.size;
    }
    const Piece *pieces = pieces_.data(), *ahead = pieces;
    const int64_t* sizes = sizes_.data();
    const char* expected = expected_;
    for (size_t i = 0; i < tensors_.size() + kAhead; ++i) {
      if (i < tensors_.size()) ahead = fetch_all(tensors_[i], ahead);
      if (i < kAhead) continue;
      const Tensor& tensor = tensors_[i - kAhead];
      if (!is_in_place(tensor, sizes)) return false;
      sizes += 2 * tensor.dimensions;
      for (size_t k = 0; k < tensor.pieces; ++k, ++pieces) {
        const char* const now = reinterpret_cast<const char*>(tensor.address) + pieces->offset;
        if (std::memcmp(now, expected, pieces->bytes) != 0) return false;
        expected += pieces->bytes;
      }
    }
    return true;
  }

 private:
  static constexpr size_t kAhead = 8, kFarAhead = 32;

  struct Object {
    PyObject *held, *kind, *attributes;
  };
  struct Entry {
    PyObject *key, *value;
  };
  struct Table {
    PyObject *held, *node;
    Py_ssize_t size;
  };
  struct Items {
    PyObject *held, *node;
    Py_ssize_t size;
  };
  struct Piece {
    size_t offset, bytes;
  };
  struct Tensor {
    PyObject* held;
    int64_t version;
    uint64_t address;
    Py_ssize_t dimensions;
    PyObject *dtype, *storage;
    uint64_t storage_bytes;
    size_t pieces;
    mutable uint64_t at;  // mutable: a handle of PyTorch's is no pointer to const
    uint64_t storage_at;  // only ever fetched
    int32_t type;
    bool by_interface;
  };

  static PyObject* pointer(py::handle object) { return object.ptr(); }

  bool holds(PyObject* node) const {
    ++asked_;
    return Result(PyObject_CallMethodObjArgs(node, holds_name_.ptr(), nullptr)).is(Py_True);
  }

  bool same(const Table& table, const Entry* expected) const {
    PyObject* held = table.held;
    if (!PyType_Check(held)) return PyDict_GET_SIZE(held) == table.size && same(held, expected, table.size);
#if PY_VERSION_HEX >= 0x030c0000
    const Result owner(held = PyType_GetDict(reinterpret_cast<PyTypeObject*>(held)));
#else
    held = reinterpret_cast<PyTypeObject*>(held)->tp_dict;
#endif
    return same(held, expected, table.size);
  }

  bool same(PyObject* held, const Entry* expected, Py_ssize_t size) const {
    PyObject *key = nullptr, *value = nullptr;
    Py_ssize_t position = 0, seen = 0;
    while (PyDict_Next(held, &position, &key, &value)) {
      if (seen < size && key == expected[seen].key) {
        if (value != expected[seen].value && expected[seen].value != anything_) return false;
        ++seen;
      } else if (!is_left_out(key)) {
        return false;
      }
    }
    return seen == size;
  }

  bool is_left_out(PyObject* name) const {
    return PyUnicode_Check(name) && std::any_of(left_out_.begin(), left_out_.end(), [name](PyObject* each) {
             return each == name || PyUnicode_Compare(each, name) == 0;
           });
  }

  bool same(const Items& items, PyObject* const* expected) const {
    PyObject* const held = items.held;
    if (PyList_Check(held)) {
      if (PyList_GET_SIZE(held) != items.size) return false;
      for (Py_ssize_t i = 0; i < items.size; ++i) {
        if (PyList_GET_ITEM(held, i) != expected[i]) return false;
      }
      return true;
    }
    const auto or_none = [](PyObject* object) { return object != nullptr ? object : Py_None; };
    if (PyFunction_GetCode(held) != expected[0]) return false;
    if (or_none(PyFunction_GetDefaults(held)) != expected[1]) return false;
    if (or_none(PyFunction_GetKwDefaults(held)) != expected[2]) return false;
    PyObject* const cells = PyFunction_GetClosure(held);  // as many as it was made with
    for (Py_ssize_t i = 3; i < items.size; ++i) {
      PyObject* const content = PyCell_GET(PyTuple_GET_ITEM(cells, i - 3));
      if ((content != nullptr ? content : anything_) != expected[i]) return false;
    }
    return true;
  }

  static void fetch_entries(const Table& table) {
    if (table.size == 0 || !PyDict_Check(table.held)) return;
    const auto* const held = reinterpret_cast<const PyDictObject*>(table.held);
    if (held->ma_values != nullptr) {
      fetch(held->ma_values, static_cast<int>(table.size / 8 + 1));
    } else {
      fetch(held->ma_keys, static_cast<int>(table.size / 3 + 1));
    }
  }

  static const Piece* fetch_all(const Tensor& tensor, const Piece* pieces) {
    fetch(tensor.held);
    if (!tensor.by_interface) fetch(tensor.storage);
    fetch(reinterpret_cast<const void*>(tensor.at), 3);
    fetch(reinterpret_cast<const void*>(tensor.storage_at), 2);
    for (size_t k = 0; k < tensor.pieces; ++k, ++pieces) {
      const auto lines = static_cast<int>((pieces->bytes + 63) / 64);
      fetch(reinterpret_cast<const char*>(tensor.address) + pieces->offset, lines);
    }
    return pieces;
  }

  // Memory is read only where this holds: the tensor is where it was, and what that is part of is as large.
  bool is_in_place(const Tensor& tensor, const int64_t* sizes) const {
    PyObject* const held = tensor.held;
    const Py_ssize_t dimensions = tensor.dimensions;
    if (tensor.version >= 0 && !Result(get(version_, held)).equals(static_cast<uint64_t>(tensor.version))) return false;
    if (tensor.by_interface) {
      // Another implementation may have taken the place of the one that was there, and that is freed then.
      return Result(get(cdata_, held)).equals(tensor.at) && interface_holds(tensor, sizes);
    }
    return Result(call(data_ptr_, held)).equals(tensor.address) &&
           Result(get(shape_, held)).equals(sizes, dimensions) &&
           Result(call(stride_, held)).equals(sizes + dimensions, dimensions) &&
           Result(get(dtype_, held)).is(tensor.dtype) &&
           Result(call(storage_nbytes_, tensor.storage)).equals(tensor.storage_bytes);
  }

  bool interface_holds(const Tensor& tensor, const int64_t* sizes) const {
    void* data = nullptr;
    int64_t dimensions = 0, bytes = 0, *now = nullptr;
    int32_t type = 0;
    void* const handle = &tensor.at;
    if (interface_.data_ptr(handle, &data) != 0 || reinterpret_cast<uint64_t>(data) != tensor.address) return false;
    if (interface_.dim(handle, &dimensions) != 0 || dimensions != tensor.dimensions) return false;
    if (interface_.sizes(handle, &now) != 0 || !std::equal(now, now + dimensions, sizes)) return false;
    if (interface_.strides(handle, &now) != 0 || !std::equal(now, now + dimensions, sizes + dimensions)) return false;
    if (interface_.dtype(handle, &type) != 0 || type != tensor.type) return false;
    return interface_.storage_size(handle, &bytes) == 0 && static_cast<uint64_t>(bytes) == tensor.storage_bytes;
  }

  std::vector<Object> objects_;
  std::vector<Table> tables_;
  std::vector<Entry> entries_;
  std::vector<Items> items_;
  std::vector<PyObject*> contents_;
  std::vector<Tensor> tensors_;
  std::vector<int64_t> sizes_;
  std::vector<Piece> pieces_;
  py::object version_, data_ptr_, shape_, stride_, dtype_, storage_nbytes_, cdata_;
  TensorInterface interface_;
  PyObject* anything_;
  std::vector<PyObject*> left_out_;
  mutable int64_t asked_ = 0;  // written with the interpreter lock held
  const char* expected_;
  py::str attributes_name_{"__dict__"}, holds_name_{"holds"};
};

}  // namespace

void define_guards(py::module_& m) {
  py::class_<Watch>(m, "Watch")
      .def(py::init<const py::list&, const py::list&, const py::list&, const py::list&, uintptr_t, const py::tuple&,
                    const py::tuple&, py::handle, const py::tuple&>())
      .def("asked", &Watch::asked)
      .def("unchanged", &Watch::unchanged);
}

}  // namespace gaia
