// The cells, in the order of their numbers in sequence.h.
#pragma once
#include "gru.h"
#include "lstm.h"
#include "rate.h"
#include "rnn.h"
#include "voltage.h"

namespace bptt {
namespace BPTT_ISA {

template <class... CELL> struct List {};
using Cells = List<Rnn, Gru, Lstm, Rate, Voltage>;

}  // namespace BPTT_ISA
}  // namespace bptt
