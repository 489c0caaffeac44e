// SPDX-License-Identifier: MIT
#include "staged_ring.h"

namespace soup {
namespace {

std::unique_ptr<OwnedEvent> if_timed(int device, bool timed) {
  return timed ? std::make_unique<OwnedEvent>(device, true) : nullptr;
}

}  // namespace

Ring::Slot::Slot(int device_index, char* on_host, char* on_device, bool timed)
    : host(on_host),
      device(on_device),
      sent(device_index, timed),
      summed(device_index, timed),
      returned(device_index, timed),
      send(if_timed(device_index, timed)),
      sum(if_timed(device_index, timed)),
      bring(if_timed(device_index, timed)) {}

Ring::Ring(int device, device::Stream after, std::size_t slots, std::size_t slot_bytes, std::size_t rows, bool timed)
    : device_(device),
      rows_(rows),
      host_(device, slots * slot_bytes),
      memory_(device, slots * slot_bytes + rows * sizeof(std::uint32_t)),
      flags_(memory_.get() + slots * slot_bytes),
      before_(device, false),
      start_(if_timed(device, timed)),
      copy_(device),
      compute_(device),
      back_(device) {
  for (std::size_t i = 0; i < slots; ++i) {
    std::size_t at = i * slot_bytes;
    slots_.push_back(std::make_unique<Slot>(device, host_.get() + at, memory_.get() + at, timed));
  }
  device::event_record(device_, before_.get(), after);
  device::stream_wait(device_, compute_.get(), before_.get());
  device::fill_bytes(device_, compute_.get(), flags_, 0, rows * sizeof(std::uint32_t));
  if (!timed) return;
  device::event_record(device_, start_->get(), copy_.get());
  device::event_synchronize(device_, start_->get());
}

void Ring::launch(Slot& slot, const FilledChunk& chunk) {
  if (!chunk.sums) return;
  // Whole chunks in the same order in all streams.
  std::lock_guard<std::mutex> lock(mutex_);
  if (slot.send) device::event_record(device_, slot.send->get(), copy_.get());
  device::copy(device_, copy_.get(), slot.device + chunk.returned, slot.host + chunk.returned, chunk.sent);
  device::event_record(device_, slot.sent.get(), copy_.get());

  device::stream_wait(device_, compute_.get(), slot.sent.get());
  if (slot.sum) device::event_record(device_, slot.sum->get(), compute_.get());
  auto* flags = reinterpret_cast<std::uint32_t*>(flags_) + chunk.first_row;
  device::weighted_sum(device_, compute_.get(), slot.device + chunk.table, chunk.shape, flags);
  device::event_record(device_, slot.summed.get(), compute_.get());

  if (chunk.returned == 0) return;
  device::stream_wait(device_, back_.get(), slot.summed.get());
  if (slot.bring) device::event_record(device_, slot.bring->get(), back_.get());
  device::copy(device_, back_.get(), slot.host, slot.device, chunk.returned);
  device::event_record(device_, slot.returned.get(), back_.get());
}

void Ring::wait(const Slot& slot, const FilledChunk& chunk) const {
  if (!chunk.sums) return;
  device::event_synchronize(device_, chunk.returned > 0 ? slot.returned.get() : slot.summed.get());
}

Ring::Times Ring::times(const Slot& slot, const FilledChunk& chunk) const {
  Times times{};
  if (!start_ || !chunk.sums) return times;
  auto at = [this](const OwnedEvent& event) { return device::event_seconds(device_, start_->get(), event.get()); };
  times = {{at(*slot.send), at(slot.sent)}, {at(*slot.sum), at(slot.summed)}, {0, 0}};
  if (chunk.returned > 0) {
    times.back[0] = at(*slot.bring);
    times.back[1] = at(slot.returned);
  }
  return times;
}

std::vector<std::size_t> Ring::flagged_rows() {
  std::vector<std::uint32_t> flags(rows_);
  device::copy(device_, compute_.get(), flags.data(), flags_, rows_ * sizeof(std::uint32_t));
  device::synchronize(device_, compute_.get());
  std::vector<std::size_t> found;
  for (std::size_t row = 0; row < rows_; ++row) {
    if (flags[row] != 0) found.push_back(row);
  }
  return found;
}

}  // namespace soup
