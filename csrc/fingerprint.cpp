#include "fingerprint.h"

#include <cstdint>
#include <cstring>
#include <vector>

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

  bool equals(const std::vector<int64_t>& expected) const {
    if (object_ == nullptr || !PyTuple_Check(object_)) return false;
    if (PyTuple_GET_SIZE(object_) != static_cast<Py_ssize_t>(expected.size())) return false;
    for (size_t i = 0; i < expected.size(); ++i) {
      PyObject* const item = PyTuple_GET_ITEM(object_, static_cast<Py_ssize_t>(i));
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

// What a fingerprint watches, by pointer: the caller keeps every object alive as long as this.
class Watch {
 public:
  // objects: (object, class, its __dict__). tables: (dictionary or class, [(key, value)], node), items: (list or
  // function, what it holds, node); `anything` is a value that does not matter, or none, and a node is asked where
  // something is another object. values: (tensor, version or -1, address, shape, strides, dtype, storage, its address,
  // its bytes, [(offset, bytes)] to compare). expected: the address of what stood there, one after the other. getters:
  // of PyTorch's classes, in the order of the members below.
  Watch(const py::list& objects, const py::list& tables, const py::list& items, const py::list& values,
        uintptr_t expected, const py::tuple& getters, py::handle anything)
      : version_(getters[0]),
        data_ptr_(getters[1]),
        shape_(getters[2]),
        stride_(getters[3]),
        dtype_(getters[4]),
        storage_data_ptr_(getters[5]),
        storage_nbytes_(getters[6]),
        anything_(anything.ptr()) {
    for (const auto& each : objects) {
      const auto parts = each.cast<py::tuple>();
      objects_.push_back({pointer(parts[0]), pointer(parts[1]), pointer(parts[2])});
    }
    for (const auto& each : tables) {
      const auto parts = each.cast<py::tuple>();
      tables_.push_back({pointer(parts[0]), {}, pointer(parts[2])});
      for (const auto& entry : parts[1].cast<py::list>()) {
        const auto pair = entry.cast<py::tuple>();
        tables_.back().expected.push_back({pointer(pair[0]), pointer(pair[1])});
      }
    }
    for (const auto& each : items) {
      const auto parts = each.cast<py::tuple>();
      items_.push_back({pointer(parts[0]), {}, pointer(parts[2])});
      for (const auto& item : parts[1].cast<py::tuple>()) items_.back().expected.push_back(pointer(item));
    }
    const char* at = reinterpret_cast<const char*>(expected);
    for (const auto& each : values) {
      const auto parts = each.cast<py::tuple>();
      tensors_.push_back({pointer(parts[0]),
                          parts[1].cast<int64_t>(),
                          parts[2].cast<uint64_t>(),
                          integers(parts[3]),
                          integers(parts[4]),
                          pointer(parts[5]),
                          pointer(parts[6]),
                          parts[7].cast<uint64_t>(),
                          parts[8].cast<uint64_t>(),
                          {}});
      for (const auto& piece : parts[9].cast<py::list>()) {
        const auto where = piece.cast<py::tuple>();
        const auto bytes = where[1].cast<size_t>();
        tensors_.back().pieces.push_back({where[0].cast<size_t>(), bytes, at});
        at += bytes;
      }
    }
  }

  // Nothing of Python's runs in between but nodes, so the interpreter lock keeps other threads away.
  bool unchanged() const {
    for (const Object& each : objects_) {
      if (reinterpret_cast<PyObject*>(Py_TYPE(each.held)) != each.kind) return false;
      if (!Result(PyObject_GetAttr(each.held, attributes_name_.ptr())).is(each.attributes)) return false;
    }
    for (const Table& each : tables_) {
      if (!same(each) && !holds(each.node)) return false;
    }
    for (const Items& each : items_) {
      if (!same(each) && !holds(each.node)) return false;
    }
    // A cache line of another tensor's is on its way while this one is asked.
    constexpr size_t ahead = 4;
    for (size_t i = 0; i < tensors_.size() + ahead; ++i) {
      if (i < tensors_.size()) prefetch(tensors_[i]);
      if (i >= ahead && !same(tensors_[i - ahead])) return false;
    }
    return true;
  }

 private:
  struct Object {
    PyObject *held, *kind, *attributes;
  };
  struct Entry {
    PyObject *key, *value;
  };
  struct Table {
    PyObject* held;
    std::vector<Entry> expected;
    PyObject* node;
  };
  struct Items {
    PyObject* held;
    std::vector<PyObject*> expected;
    PyObject* node;
  };
  struct Piece {
    size_t offset, bytes;
    const char* expected;
  };
  struct Tensor {
    PyObject* held;
    int64_t version;
    uint64_t address;
    std::vector<int64_t> shape, strides;
    PyObject *dtype, *storage;
    uint64_t storage_address, storage_bytes;
    std::vector<Piece> pieces;
  };

  static PyObject* pointer(py::handle object) { return object.ptr(); }

  static std::vector<int64_t> integers(py::handle object) {
    std::vector<int64_t> found;
    for (const auto& each : object.cast<py::tuple>()) found.push_back(each.cast<int64_t>());
    return found;
  }

  bool holds(PyObject* node) const {
    return Result(PyObject_CallMethodObjArgs(node, holds_name_.ptr(), nullptr)).is(Py_True);
  }

  bool same(const Table& table) const {
    PyObject* held = table.held;
    if (PyType_Check(held)) {
#if PY_VERSION_HEX >= 0x030c0000
      const Result owner(held = PyType_GetDict(reinterpret_cast<PyTypeObject*>(held)));
      return same(held, table.expected);
#else
      held = reinterpret_cast<PyTypeObject*>(held)->tp_dict;
#endif
    }
    return same(held, table.expected);
  }

  bool same(PyObject* held, const std::vector<Entry>& expected) const {
    if (PyDict_GET_SIZE(held) != static_cast<Py_ssize_t>(expected.size())) return false;
    PyObject *key = nullptr, *value = nullptr;
    Py_ssize_t position = 0;
    for (const Entry& each : expected) {
      if (!PyDict_Next(held, &position, &key, &value) || key != each.key) return false;
      if (value != each.value && each.value != anything_) return false;
    }
    return true;
  }

  bool same(const Items& items) const {
    const auto size = static_cast<Py_ssize_t>(items.expected.size());
    PyObject* const held = items.held;
    if (PyList_Check(held)) {
      if (PyList_GET_SIZE(held) != size) return false;
      for (Py_ssize_t i = 0; i < size; ++i) {
        if (PyList_GET_ITEM(held, i) != items.expected[static_cast<size_t>(i)]) return false;
      }
      return true;
    }
    const auto or_none = [](PyObject* object) { return object != nullptr ? object : Py_None; };
    if (PyFunction_GetCode(held) != items.expected[0]) return false;
    if (or_none(PyFunction_GetDefaults(held)) != items.expected[1]) return false;
    if (or_none(PyFunction_GetKwDefaults(held)) != items.expected[2]) return false;
    PyObject* const cells = PyFunction_GetClosure(held);  // as many as it was made with
    for (Py_ssize_t i = 3; i < size; ++i) {
      PyObject* const content = PyCell_GET(PyTuple_GET_ITEM(cells, i - 3));
      if ((content != nullptr ? content : anything_) != items.expected[static_cast<size_t>(i)]) return false;
    }
    return true;
  }

  static void prefetch(const Tensor& tensor) {
    for (const Piece& each : tensor.pieces)
      __builtin_prefetch(reinterpret_cast<const char*>(tensor.address) + each.offset);
  }

  bool same(const Tensor& tensor) const {
    PyObject* const held = tensor.held;
    if (tensor.version >= 0 && !Result(get(version_, held)).equals(static_cast<uint64_t>(tensor.version))) return false;
    if (!Result(call(data_ptr_, held)).equals(tensor.address)) return false;
    if (!Result(get(shape_, held)).equals(tensor.shape)) return false;
    if (!Result(call(stride_, held)).equals(tensor.strides)) return false;
    if (!Result(get(dtype_, held)).is(tensor.dtype)) return false;
    // Memory is read only where the storage that it belongs to is as large as it was, and in the same place.
    if (!Result(call(storage_data_ptr_, tensor.storage)).equals(tensor.storage_address)) return false;
    if (!Result(call(storage_nbytes_, tensor.storage)).equals(tensor.storage_bytes)) return false;
    for (const Piece& each : tensor.pieces) {
      const char* const now = reinterpret_cast<const char*>(tensor.address) + each.offset;
      if (std::memcmp(now, each.expected, each.bytes) != 0) return false;
    }
    return true;
  }

  std::vector<Object> objects_;
  std::vector<Table> tables_;
  std::vector<Items> items_;
  std::vector<Tensor> tensors_;
  py::object version_, data_ptr_, shape_, stride_, dtype_, storage_data_ptr_, storage_nbytes_;
  PyObject* anything_;
  py::str attributes_name_{"__dict__"}, holds_name_{"holds"};
};

}  // namespace

void define_fingerprint(py::module_& m) {
  py::class_<Watch>(m, "Watch")
      .def(py::init<const py::list&, const py::list&, const py::list&, const py::list&, uintptr_t, const py::tuple&,
                    py::handle>())
      .def("unchanged", &Watch::unchanged);
}

}  // namespace gaia
